//! Admin commands of a modelled drive.

use std::time::Duration;

use crate::command::admin;
use crate::fields::Fields;
use crate::status::Status;
use crate::transport::PAGE_BYTES;

use super::Model;
use super::media::Space;
use super::queues::{Given, Outcome};
use super::script::NewNamespace;

/// Commands that a running or failed sanitize leaves (NVMe Base 2.0, figure 597).
fn is_allowed_meanwhile(opcode: u8) -> bool {
    matches!(
        opcode,
        admin::CREATE_SQ
            | admin::CREATE_CQ
            | admin::GET_LOG
            | admin::IDENTIFY
            | admin::GET_FEATURES
            | admin::SET_FEATURES
    )
}

impl Model {
    pub(super) fn admin(&mut self, given: &Given) -> Outcome {
        let status = |kind, code| Outcome::at_once(Status::new(kind, code));
        if let Some((_, refusal)) = self
            .script
            .refuses
            .iter()
            .find(|(opcode, _)| *opcode == given.opcode)
        {
            return Outcome::at_once(*refusal);
        }
        if !is_allowed_meanwhile(given.opcode) {
            if self.is_sanitizing() {
                return status(0, 0x1d);
            }
            if self.has_failed_sanitize() && given.opcode != admin::SANITIZE {
                return status(0, 0x1c);
            }
        }
        match given.opcode {
            admin::IDENTIFY => {
                let [structure, ..] = given.words[0].to_le_bytes();
                let page = self.identify(structure, given.nsid);
                self.reply(given, page.map(|page| page.to_vec()))
            }
            admin::GET_LOG => {
                let [page, _, low, high] = given.words[0].to_le_bytes();
                let bytes = (usize::from(u16::from_le_bytes([low, high])) + 1) * 4;
                let Some(mut log) = self.log(page) else {
                    return status(1, 0x09);
                };
                log.resize(bytes, 0);
                self.reply(given, Some(log))
            }
            admin::SECURITY_RECEIVE => {
                let [_, low, high, protocol] = given.words[0].to_le_bytes();
                let specific = u16::from_le_bytes([low, high]);
                let page = self.security(protocol, specific);
                self.reply(given, page)
            }
            admin::CREATE_CQ | admin::CREATE_SQ => self.create_queue(given),
            admin::SET_FEATURES => self.set_feature(given),
            admin::GET_FEATURES => self.get_feature(given),
            admin::NAMESPACE_MANAGEMENT => self.manage_namespace(given),
            admin::NAMESPACE_ATTACHMENT => self.attach_namespace(given),
            admin::SANITIZE => Outcome::at_once(self.start_sanitize(given.words[0])),
            admin::FORMAT => match self.start_format(given.nsid, given.words[0]) {
                Err(refusal) => Outcome::at_once(refusal),
                Ok(None) => Outcome::never(),
                Ok(Some(after)) => Outcome::after(after),
            },
            _ => status(0, 0x01),
        }
    }

    fn reply(&mut self, given: &Given, page: Option<Vec<u8>>) -> Outcome {
        let Some(page) = page else {
            return Outcome::at_once(Status::new(0, 0x02));
        };
        let sent = self.send(given.prp, &page);
        Outcome::at_once(if sent {
            Status::SUCCESS
        } else {
            Status::new(0, 0x04)
        })
    }

    fn create_queue(&mut self, given: &Given) -> Outcome {
        let [low, high, size_low, size_high] = given.words[0].to_le_bytes();
        let id = u16::from_le_bytes([low, high]);
        let entries = u32::from(u16::from_le_bytes([size_low, size_high])) + 1;
        let rings = self.queues.entry(id).or_default();
        if given.opcode == admin::CREATE_CQ {
            rings.set_completions(given.prp[0], entries);
        } else {
            rings.set_submissions(given.prp[0], entries);
        }
        Outcome::at_once(Status::SUCCESS)
    }

    fn set_feature(&mut self, given: &Given) -> Outcome {
        let [id, ..] = given.words[0].to_le_bytes();
        let value = given.words[1];
        match id {
            0x07 => Outcome::with_result(0),
            0x84 => {
                let Some(space) = self.media.spaces.get_mut(&given.nsid) else {
                    return Outcome::at_once(Status::new(0, 0x0b));
                };
                if space.write_protection > 1 {
                    return Outcome::at_once(Status::new(1, 0x0e));
                }
                space.write_protection = value.to_le_bytes()[0] & 3;
                Outcome::at_once(Status::SUCCESS)
            }
            _ if default_of(id).is_some() => {
                if given.words[0] >> 31 != 0 {
                    self.saved_features.insert((id, given.nsid), value);
                }
                Outcome::at_once(Status::SUCCESS)
            }
            _ => Outcome::at_once(Status::new(0, 0x02)),
        }
    }

    fn get_feature(&mut self, given: &Given) -> Outcome {
        let [id, select, ..] = given.words[0].to_le_bytes();
        if id == 0x84 {
            let space = self.media.spaces.get(&given.nsid);
            return match space {
                Some(space) => Outcome::with_result(space.write_protection.into()),
                None => Outcome::at_once(Status::new(0, 0x0b)),
            };
        }
        let Some(default) = default_of(id) else {
            return Outcome::at_once(Status::new(0, 0x02));
        };
        let saved = self.saved_features.get(&(id, given.nsid)).copied();
        Outcome::with_result(match select & 7 {
            1 => default,
            3 => 0b101 | u32::from(id == 0x05) << 1,
            _ => saved.unwrap_or(default),
        })
    }

    fn manage_namespace(&mut self, given: &Given) -> Outcome {
        let status = |kind, code| Outcome::at_once(Status::new(kind, code));
        if self.script.admin_commands & 1 << 3 == 0 {
            return status(0, 0x01);
        }
        if given.words[0] & 0xf == 1 {
            let keeps = self.script.keeps_deleted_blocks;
            return match self.media.delete(given.nsid, keeps) {
                true => Outcome::after(Duration::from_millis(50)),
                false => status(0, 0x0b),
            };
        }
        let Some(page) = self.receive(given.prp, PAGE_BYTES) else {
            return status(0, 0x04);
        };
        let page = Fields(&page);
        let mut space = Space::new(NewNamespace {
            blocks: page.le64(0),
            format: page.byte(26) & 0xf,
            is_extended: page.byte(26) & 1 << 4 != 0,
        });
        space.protection = page.byte(29);
        space.is_attached = false;
        let needed = self.media.allocated_bytes().saturating_add(space.bytes());
        if space.blocks == 0 || needed > self.script.capacity_bytes {
            return status(1, 0x15);
        }
        self.note_written();
        Outcome::with_result(self.media.create(space))
    }

    fn attach_namespace(&mut self, given: &Given) -> Outcome {
        let list = self.receive(given.prp, PAGE_BYTES);
        let is_for_us = list.is_some_and(|list| Fields(&list).le32(0) == 0x0007_0001);
        let status = match self.media.spaces.get_mut(&given.nsid) {
            Some(space) if space.is_attached => Status::new(1, 0x18),
            Some(space) if is_for_us => {
                space.is_attached = true;
                Status::SUCCESS
            }
            Some(_) => Status::new(1, 0x1c),
            None => Status::new(0, 0x0b),
        };
        Outcome::at_once(status)
    }
}

/// The features that can be saved, with their defaults.
fn default_of(id: u8) -> Option<u32> {
    match id {
        0x05 => Some(0),
        0x06 => Some(1),
        0x10 => Some(0x0150_0160),
        _ => None,
    }
}

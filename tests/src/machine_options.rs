//! Options of the command line for what a machine is made of besides its files: memory, balloon,
//! panic device.

use anyhow::{Context as _, Result, bail};
use berth_api::vmm::{Balloon, HostPages, MemoryBacking, Start};

/// How the options are written.
pub const USAGE: &str = "[--balloon[=oom,reporting]] [--panic-device] [--pages small|2m|1g] \
                         [--numa N,...] [--prefault]";

/// What they say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachineOptions {
    balloon: Option<Balloon>,
    panic_device: bool,
    memory_backing: MemoryBacking,
}

impl MachineOptions {
    /// Takes `option`, whose value, if it wants one, comes from `value`; false if it is none of these.
    ///
    /// # Errors
    /// If the value is missing or wrong.
    pub fn take(&mut self, option: &str, value: impl FnOnce() -> Result<String>) -> Result<bool> {
        let (name, attached) = match option.split_once('=') {
            Some((name, words)) => (name, Some(words)),
            None => (option, None),
        };
        match (name, attached) {
            ("--balloon", words) => self.balloon = Some(balloon(words.unwrap_or_default())?),
            ("--panic-device", None) => self.panic_device = true,
            ("--prefault", None) => self.memory_backing.prefault = true,
            ("--pages", None) => self.memory_backing.pages = pages(&value()?)?,
            ("--numa", None) => self.memory_backing.numa_nodes = nodes(&value()?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts them into a start message.
    pub fn put_into(&self, start: &mut Start) {
        start.balloon = self.balloon;
        start.panic_device = self.panic_device;
        start.memory_backing = self.memory_backing.clone();
    }
}

fn balloon(words: &str) -> Result<Balloon> {
    let mut balloon = Balloon {
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word {
            "oom" => balloon.deflate_on_oom = true,
            "reporting" => balloon.free_page_reporting = true,
            _ => bail!("--balloon: `{word}` is neither oom nor reporting"),
        }
    }
    Ok(balloon)
}

fn pages(word: &str) -> Result<HostPages> {
    Ok(match word {
        "small" => HostPages::Small,
        "2m" => HostPages::Huge2M,
        "1g" => HostPages::Huge1G,
        _ => bail!("--pages: `{word}` is none of small, 2m, 1g"),
    })
}

fn nodes(words: &str) -> Result<Vec<u32>> {
    let node = |word: &str| {
        word.parse()
            .ok()
            .with_context(|| format!("--numa: `{word}` is no node's number"))
    };
    words.split(',').map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(words: &[(&str, &str)]) -> Result<MachineOptions> {
        let mut options = MachineOptions::default();
        for (option, value) in words {
            let is_known = options.take(option, || Ok((*value).to_owned()))?;
            anyhow::ensure!(is_known, "{option} is unknown");
        }
        Ok(options)
    }

    #[test]
    fn options_say_what_the_machine_is_made_of() {
        let options = taken(&[
            ("--balloon=oom,reporting", ""),
            ("--panic-device", ""),
            ("--pages", "2m"),
            ("--numa", "0,3"),
            ("--prefault", ""),
        ]);
        let expected = MachineOptions {
            balloon: Some(Balloon {
                deflate_on_oom: true,
                free_page_reporting: true,
            }),
            panic_device: true,
            memory_backing: MemoryBacking {
                pages: HostPages::Huge2M,
                numa_nodes: vec![0, 3],
                prefault: true,
            },
        };
        assert_eq!(options.unwrap(), expected);
        let plain = taken(&[("--balloon", "")]).unwrap().balloon.unwrap();
        assert!(!plain.deflate_on_oom && !plain.free_page_reporting);
    }

    #[test]
    fn words_that_mean_nothing_are_refused() {
        for wrong in [
            ("--balloon=air", ""),
            ("--pages", "4k"),
            ("--numa", "0,"),
            ("--prefault=yes", ""),
            ("--fly", ""),
        ] {
            taken(&[wrong]).unwrap_err();
        }
    }
}

//! The host check's lines about slots: what stands against renting any device of this host out.
//!
//! Judged where the agent judges, so that both say the same. None of it keeps VMs without devices from
//! running, so nothing of it is more than a warning.

use std::path::Path;

use berth_agent_core::slot::approval::Approvals;
use berth_agent_core::slot::judge::judge_host;
use berth_api::slot::SlotProblem;

use super::judge::{Check, Status};

const NAME: &str = "slots";

/// The lines for the host below `root`.
#[must_use]
pub(crate) fn checks(root: &Path) -> Vec<Check> {
    let snapshot = match berth_inventory::read(root) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let found = format!("{error}: {}", error.cause);
            return vec![warn(
                found,
                "Run this as root, with sysfs and procfs mounted.",
            )];
        }
    };
    // Whose files they are is the agent's to judge; a drawn host's belong to whoever drew it.
    let owner = if root == Path::new("/") {
        0
    } else {
        rustix::process::geteuid().as_raw()
    };
    let approvals = berth_inventory::read_approvals(&root.join("etc/berth/slots.d"), owner);
    judged(&judge_host(&snapshot), &approvals)
}

fn judged(findings: &[SlotProblem], approvals: &Approvals) -> Vec<Check> {
    let mut checks: Vec<Check> = findings
        .iter()
        .map(|finding| {
            warn(
                finding.message.clone(),
                "Until then this host rents no slot out.",
            )
        })
        .chain(approvals.refused.iter().map(|refused| {
            warn(
                format!("{} approves nothing: {}", refused.file, refused.reason),
                "Mend it or remove it; see `berthctl slot check`.",
            )
        }))
        .collect();
    if checks.is_empty() {
        checks.push(Check {
            name: NAME,
            status: Status::Ok,
            found: format!("isolated; {} approved", approvals.approved.len()),
            remedy: None,
        });
    }
    checks
}

fn warn(found: String, remedy: &'static str) -> Check {
    Check {
        name: NAME,
        status: Status::Warn,
        found,
        remedy: Some(remedy),
    }
}

#[cfg(test)]
mod tests {
    use berth_agent_core::slot::approval::RefusedApproval;
    use berth_api::slot::SlotProblemCode;

    use super::*;

    #[test]
    fn each_finding_and_each_refused_file_is_a_line() {
        let finding = SlotProblem {
            code: SlotProblemCode::IommuGroupUnsafe,
            message: "no IOMMU".to_owned(),
        };
        let refused = RefusedApproval {
            file: "disk.toml".to_owned(),
            reason: "mode 666".to_owned(),
        };
        let approvals = Approvals {
            approved: Vec::new(),
            refused: vec![refused],
        };
        let found: Vec<String> = judged(&[finding], &approvals)
            .into_iter()
            .map(|check| check.found)
            .collect();
        assert_eq!(found, ["no IOMMU", "disk.toml approves nothing: mode 666"]);
        assert_eq!(judged(&[], &Approvals::default())[0].status, Status::Ok);
    }
}

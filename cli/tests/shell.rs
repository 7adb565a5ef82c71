//! What packages ship beside the programs: completions and manual pages.

#[cfg(test)]
mod tests {
    use std::process::Command;

    fn berthctl(arguments: &[&str]) -> Vec<u8> {
        let output = Command::new(env!("CARGO_BIN_EXE_berthctl"))
            .args(arguments)
            .env_clear()
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn the_completion_for_bash_is_a_script_that_bash_accepts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("berthctl.bash");
        std::fs::write(&file, berthctl(&["completion", "bash"])).unwrap();
        let mut bash = Command::new("bash");
        // Loading it must leave a completion for the program behind.
        bash.args(["--norc", "-c", "source \"$0\" && complete -p berthctl"]);
        let output = bash.arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn zsh_and_fish_have_completions_too() {
        let zsh = String::from_utf8(berthctl(&["completion", "zsh"])).unwrap();
        assert!(zsh.starts_with("#compdef berthctl"));
        let fish = String::from_utf8(berthctl(&["completion", "fish"])).unwrap();
        assert!(fish.contains("complete -c berthctl"));
    }

    #[test]
    fn every_command_of_both_programs_has_a_manual_page() {
        let folder = tempfile::tempdir().unwrap();
        berthctl(&["man", folder.path().to_str().unwrap()]);
        for page in [
            "berthctl",
            "berthctl-vm-create",
            "berthctl-host-check",
            "service-fs-read",
        ] {
            let text = std::fs::read_to_string(folder.path().join(format!("{page}.1"))).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
            assert!(text.contains(&format!(".TH {page} 1")), "{text}");
        }
    }
}

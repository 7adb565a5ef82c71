//! Who survives a panic: everybody but the database's own threads.
//!
//! A panic of a handler is its caller's 500. A panic of the writer leaves a controller that cannot
//! change anything any more, and one of the thread that copies its log means that the disk failed: the process
//! ends, and the next one begins with what is on disk.

use std::panic::{set_hook, take_hook};

use berth_controller_store::{WAL_THREAD, WRITER_THREAD};

/// From here on a panic of one of them ends the process.
pub(crate) fn install_hook() {
    let told = take_hook();
    set_hook(Box::new(move |panic| {
        told(panic);
        let thread = std::thread::current();
        if is_fatal(thread.name()) {
            tracing::error!("a thread of the database panicked; this process ends");
            std::process::abort();
        }
    }));
}

fn is_fatal(thread: Option<&str>) -> bool {
    [Some(WRITER_THREAD), Some(WAL_THREAD)].contains(&thread)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Output};
    use std::sync::Arc;

    use super::*;
    use berth_controller_store::{Keys, Store};
    use berth_ledger::keys::SigningKey;

    /// Says which thread is to panic to the process that is to suffer it.
    const WHO: &str = "BERTH_TEST_WHO_PANICS";
    const SIGABRT: i32 = 6;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.db");
        Store::init(&path).unwrap();
        let keys = Keys {
            ledger: SigningKey::generate().unwrap(),
            task: SigningKey::generate().unwrap(),
        };
        (folder, Arc::new(Store::open(&path, keys).unwrap()))
    }

    /// Run the test of this name again, in a process where `who` panics.
    fn process_where(who: &str, test: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(WHO, who)
            .output()
            .unwrap()
    }

    fn suffer(who: &str) {
        install_hook();
        let (_folder, store) = store();
        if who == "writer" {
            let answer = store.write::<()>(|_| panic!("told to"));
            unreachable!("{answer:?} came from a process that has ended");
        }
        let other = Arc::clone(&store);
        let reader = std::thread::spawn(move || other.read::<()>(|_| panic!("told to")));
        assert!(reader.join().is_err(), "the reader panics");
        store.write(|_| Ok(())).unwrap();
    }

    #[test]
    fn a_panic_of_the_writer_ends_the_process_and_that_of_a_reader_does_not() {
        if let Ok(who) = std::env::var(WHO) {
            return suffer(&who);
        }
        let name =
            "panics::tests::a_panic_of_the_writer_ends_the_process_and_that_of_a_reader_does_not";
        let survives = process_where("reader", name);
        assert!(survives.status.success(), "{survives:?}");
        let ends = process_where("writer", name);
        assert_eq!(ends.status.signal(), Some(SIGABRT), "{ends:?}");
        for output in [survives, ends] {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(words.contains("told to"), "{words}");
        }
    }

    #[test]
    fn the_databases_threads_alone_are_fatal() {
        assert!(is_fatal(Some(WRITER_THREAD)));
        assert!(is_fatal(Some(WAL_THREAD)));
        for other in [None, Some("main"), Some("tokio-runtime-worker")] {
            assert!(!is_fatal(other), "{other:?}");
        }
    }
}

//! The store's copy: complete for readers at every moment, and never older or another's.

use std::convert::Infallible;
use std::time::Duration;

use berth_ledger::audit::verify_log;
use berth_ledger::model::ModelLog;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};

use super::*;

impl Tell for () {
    fn progress(&mut self, _: &str, _: u64, _: u64) {}
}

fn log(origin: &str, seed: u8, size: u64) -> ModelLog {
    let mut log = ModelLog::new(origin, seed);
    grow(&mut log, size);
    log
}

fn grow(log: &mut ModelLog, more: u64) {
    for _ in 0..more {
        log.append(b"an entry");
    }
}

struct Bench {
    source: Arc<dyn ObjectStore>,
    target: Arc<dyn ObjectStore>,
    key: PublicKey,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new(log: &ModelLog) -> Self {
        let bench = Self {
            source: Arc::new(InMemory::new()),
            target: Arc::new(InMemory::new()),
            key: *log.vkey().public_key(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
        };
        bench.show(log);
        bench
    }

    /// The folder as the controller leaves it at the log's size now: full forms, and partial ones.
    fn show(&self, log: &ModelLog) {
        let origin = log.vkey().name().to_string();
        let folder = Path::from(origin.rsplit('/').next().unwrap());
        self.runtime.block_on(async {
            for resource in Resource::all(log.size()) {
                let bytes = log.read(resource).unwrap();
                let place = place_of(&folder, &resource);
                self.source.put(&place, bytes.into()).await.unwrap();
            }
            let note = log.signed(log.size()).note().to_string();
            let place = folder.join("checkpoint");
            self.source
                .put(&place, note.into_bytes().into())
                .await
                .unwrap();
        });
    }

    fn copier(&self) -> Copier {
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        Copier::new(source, target, vec![self.key])
    }

    fn copy(&self) -> Result<Vec<Copied>, PublishError> {
        self.runtime.block_on(self.copier().copy(&mut ()))
    }

    fn at(&self, path: &str) -> Option<Vec<u8>> {
        let place = Path::from(path);
        let read = read(&self.target, Side::Store, &place);
        self.runtime.block_on(read).unwrap()
    }

    /// The whole log that a reader of the store finds; 0 if there is no checkpoint yet.
    #[track_caller]
    fn readable(&self, epoch: &str) -> u64 {
        let Some(note) = self.at(&format!("{epoch}/checkpoint")) else {
            return 0;
        };
        let place = Path::from(format!("{epoch}/checkpoint"));
        let checkpoint = self.copier().open(Side::Store, &place, &note).unwrap();
        let read = |resource: Resource| {
            let bytes = self.at(&format!("{epoch}/{resource}"));
            Ok::<_, Infallible>(bytes.unwrap_or_else(|| panic!("{resource} is missing")))
        };
        verify_log(&checkpoint, read, &mut ()).unwrap().entries
    }

    fn objects(&self) -> usize {
        self.runtime.block_on(async {
            let mut listed = self.target.list(None);
            let mut count = 0;
            while let Some(object) = poll_fn(|cx| listed.as_mut().poll_next(cx)).await {
                object.unwrap();
                count += 1;
            }
            count
        })
    }
}

#[test]
fn a_store_alone_is_enough_for_its_readers_at_every_size() {
    let mut log = log("ledger.example/d/e1", 7, 0);
    let bench = Bench::new(&log);
    let mut copier = bench.copier();
    let mut size = 0;
    for more in [0, 1, 2, 250, 3, 1, 255, 257, 30] {
        grow(&mut log, more);
        size += more;
        bench.show(&log);
        let copied = bench.runtime.block_on(copier.copy(&mut ())).unwrap();
        assert_eq!((copied[0].size, copied[0].is_new), (size, true));
        assert_eq!(bench.readable("e1"), size);
        let again = bench.runtime.block_on(copier.copy(&mut ())).unwrap();
        assert!(!again[0].is_new);
    }
    // 3 full tiles and bundles; of what is partial at 799 the forms that it had at 769, and of the tile
    // above those of 1, 2 and 3 hashes; the checkpoint. Partial forms of what is full are gone.
    assert_eq!(bench.objects(), 3 + 3 + 2 * 2 + 3 + 1);
}

/// A store whose calls take their time, on a clock that runs when everybody waits.
fn slow(inner: &Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    let config = ThrottleConfig {
        wait_delete_per_call: Duration::from_millis(1),
        wait_get_per_call: Duration::from_millis(1),
        wait_list_per_call: Duration::from_millis(1),
        wait_put_per_call: Duration::from_millis(1),
        ..ThrottleConfig::default()
    };
    Arc::new(ThrottledStore::new(Arc::clone(inner), config))
}

#[test]
fn whoever_dies_anywhere_leaves_a_whole_log_and_the_next_one_goes_on() {
    let before = log("ledger.example/d/e1", 7, 300);
    // More than are on their way at once.
    let log = log("ledger.example/d/e1", 7, 300 + 256 * 20);
    let (mut with_the_old, mut with_the_new) = (0, 0);
    for milliseconds in 1.. {
        let mut bench = Bench::new(&before);
        bench.runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        bench.copy().unwrap();
        bench.show(&log);
        let (source, target) = (slow(&bench.source), slow(&bench.target));
        let mut copier = Copier::new(source, target, vec![bench.key]);
        let ended = bench.runtime.block_on(async {
            let limit = Duration::from_millis(milliseconds);
            tokio::time::timeout(limit, copier.copy(&mut ())).await
        });
        match bench.readable("e1") {
            300 => with_the_old += 1,
            size => {
                assert_eq!(size, log.size());
                with_the_new += 1;
            }
        }
        bench.copy().unwrap();
        assert_eq!(bench.readable("e1"), log.size());
        for tile in 0..log.size() / 256 {
            let resource = Resource::Tile(Tile::new(0, tile, FULL_WIDTH).unwrap());
            let is_left = |width: &u32| bench.at(&format!("e1/{resource}.p/{width}")).is_some();
            assert_eq!((1..256).find(is_left), None, "partial forms of {resource}");
        }
        if ended.is_ok() {
            break;
        }
    }
    assert!(
        with_the_old > 5,
        "{with_the_old} deaths before the checkpoint"
    );
    // One of them did not die.
    assert!(with_the_new > 1, "{with_the_new} ends after the checkpoint");
}

#[test]
fn an_obstacle_in_the_store_leaves_the_old_copy_and_is_no_refusal() {
    let mut log = log("ledger.example/d/e1", 7, 300);
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench {
        target: Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap()),
        ..Bench::new(&log)
    };
    bench.copy().unwrap();
    grow(&mut log, 300);
    bench.show(&log);
    // A folder is where a file belongs.
    for path in ["e1/tile/0/001", "e1/tile/entries/001", "e1/tile/1/000.p/2"] {
        let place = folder.path().join(path);
        // What an attempt before has written.
        drop(std::fs::remove_file(&place));
        std::fs::create_dir_all(place.join("x")).unwrap();
        let error = bench.copy().unwrap_err();
        assert!(matches!(error, PublishError::Objects { .. }), "{error:?}");
        assert!(!error.is_refusal());
        assert_eq!(bench.readable("e1"), 300);
        std::fs::remove_dir_all(&place).unwrap();
    }
    bench.copy().unwrap();
    assert_eq!(bench.readable("e1"), 600);
}

#[test]
fn an_older_log_another_history_and_another_key_leave_the_store_as_it_is() {
    let newest = log("ledger.example/d/e1", 7, 300);
    let bench = Bench::new(&newest);
    bench.copy().unwrap();
    let published = bench.at("e1/checkpoint");
    let mut forked = ModelLog::new("ledger.example/d/e1", 7);
    for _ in 0..400 {
        forked.append(b"another entry");
    }
    for (what, other) in [
        ("older", log("ledger.example/d/e1", 7, 299)),
        ("forked", forked),
        ("foreign", log("ledger.example/d/e1", 8, 400)),
        ("of another name", log("ledger.example/other/e1", 7, 400)),
    ] {
        let from_it = Bench {
            target: Arc::clone(&bench.target),
            ..Bench::new(&other)
        };
        let error = from_it.copy().unwrap_err();
        assert!(error.is_refusal(), "{what}: {error:?}");
        let is_expected = match what {
            "older" => matches!(
                error,
                PublishError::Denied {
                    cause: Denied::Newer {
                        published: 300,
                        found: 299
                    },
                    ..
                }
            ),
            "forked" => matches!(
                error,
                PublishError::Denied {
                    cause: Denied::Forked { size: 300, .. },
                    ..
                }
            ),
            _ => matches!(
                error,
                PublishError::Foreign {
                    side: Side::Store,
                    ..
                }
            ),
        };
        assert!(is_expected, "{what}: {error:?}");
        assert_eq!(bench.at("e1/checkpoint"), published, "{what}");
        assert_eq!(bench.readable("e1"), 300, "{what}");
    }
}

#[test]
fn a_folder_that_is_not_what_its_checkpoint_says_is_not_published() {
    let log = log("ledger.example/d/e1", 7, 300);
    let put = |bench: &Bench, path: &str, bytes: Vec<u8>| {
        let place = Path::from(path);
        let put = bench.source.put(&place, bytes.into());
        bench.runtime.block_on(put).unwrap();
    };
    for (path, bytes) in [
        ("e1/tile/1/000.p/1", vec![0; 32]),
        ("e1/tile/0/000", vec![0; 31]),
        ("e1/tile/entries/001.p/44", vec![0; 3]),
        ("e1/checkpoint", b"no checkpoint\n".to_vec()),
    ] {
        let bench = Bench::new(&log);
        put(&bench, path, bytes);
        let error = bench.copy().unwrap_err();
        assert!(error.is_refusal(), "{path}: {error:?}");
        assert_eq!(bench.at("e1/checkpoint"), None, "{path}");
    }
    let bench = Bench::new(&log);
    // A checkpoint under another epoch's name.
    let note = log.signed(300).note().to_string();
    put(&bench, "e2/checkpoint", note.into_bytes());
    let error = bench.copy().unwrap_err();
    assert!(matches!(error, PublishError::Foreign { .. }), "{error:?}");
}

#[test]
fn every_epoch_is_copied_and_a_folder_without_any_is_told_of() {
    let first = log("ledger.example/d/e1", 7, 5);
    let bench = Bench::new(&first);
    bench.show(&log("ledger.example/d/e2", 7, 300));
    bench.show(&log("ledger.example/d/e10", 7, 2));
    let copied = bench.copy().unwrap();
    let epochs: Vec<_> = copied.iter().map(|log| log.epoch.as_str()).collect();
    assert_eq!(epochs, ["e1", "e2", "e10"]);
    assert_eq!(
        [
            bench.readable("e1"),
            bench.readable("e2"),
            bench.readable("e10")
        ],
        [5, 300, 2]
    );
    let empty = Bench {
        source: Arc::new(InMemory::new()),
        ..Bench::new(&first)
    };
    let error = empty.copy().unwrap_err();
    assert!(matches!(error, PublishError::NoLog), "{error:?}");
    assert!(!error.is_refusal());
}

#[test]
fn a_checkpoint_that_another_publisher_put_meanwhile_is_not_replaced() {
    let mut log = log("ledger.example/d/e1", 7, 10);
    let bench = Bench::new(&log);
    bench.copy().unwrap();
    let folder = Path::from("e1");
    let slow = bench.copier();
    let theirs = bench.runtime.block_on(slow.theirs(&folder)).unwrap();
    grow(&mut log, 10);
    bench.show(&log);
    let ours = bench.runtime.block_on(slow.ours("e1")).unwrap().unwrap();
    grow(&mut log, 10);
    bench.show(&log);
    bench.copy().unwrap();
    let put = slow.put_checkpoint(&folder, &ours, theirs);
    let error = bench.runtime.block_on(put).unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::Objects {
                cause: object_store::Error::Precondition { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(bench.readable("e1"), 30);
}

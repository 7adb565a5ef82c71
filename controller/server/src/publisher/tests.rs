//! The public copy of a log: complete for readers at every moment, whatever fails.

use std::convert::Infallible;
use std::path::PathBuf;

use berth_controller_store::{Cause, Keys, NewEvent};
use berth_ledger::audit::verify_log;
use berth_ledger::keys::SigningKey;
use object_store::local::LocalFileSystem;

use super::*;

fn keys() -> Keys {
    Keys {
        ledger: SigningKey::from_seed(&[1; 32]).unwrap(),
        task: SigningKey::from_seed(&[2; 32]).unwrap(),
    }
}

struct Bench {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    publisher: Publisher,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("berth.db");
        Store::init(&database).unwrap();
        std::fs::create_dir(folder.path().join("public")).unwrap();
        Self {
            store: Arc::new(Store::open(&database, keys()).unwrap()),
            publisher: publisher(&folder.path().join("public")),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
            folder,
        }
    }

    fn public(&self) -> PathBuf {
        self.folder.path().join("public")
    }

    fn append(&self, count: u64) {
        let change = move |tx: &mut berth_controller_store::WriteTx<'_>| {
            for _ in 0..count {
                let event = NewEvent {
                    event_type: "VM_STARTED",
                    outcome: "completed",
                    ..NewEvent::default()
                };
                tx.append(event, &Cause::controller())?;
            }
            Ok(())
        };
        self.store.write(change).unwrap();
    }

    fn shown(&self) -> Shown {
        self.store.read(|db| db.log_head()).unwrap().into()
    }

    fn publish(&self) -> Result<(), PublishError> {
        let shown = self.shown();
        self.runtime
            .block_on(self.publisher.publish(&self.store, &shown))
    }

    /// What a reader of the folder finds, who has the log's key: a whole log of this size.
    #[track_caller]
    fn assert_readable(&self, size: u64) {
        let root = self.public().join("e1");
        let note = std::fs::read(root.join("checkpoint")).unwrap();
        let origin = KeyName::new(&self.shown().origin).unwrap();
        let vkey = LogHead::vkey_of(origin, &keys().ledger.public());
        let signed = SignedCheckpoint::open(&note, &[vkey]).unwrap();
        assert_eq!(signed.checkpoint().size, size);
        let read = |resource: Resource| {
            let bytes = std::fs::read(root.join(resource.to_string()));
            Ok::<_, Infallible>(bytes.unwrap_or_else(|error| panic!("{resource}: {error}")))
        };
        let report = verify_log(signed.checkpoint(), read, &mut ()).unwrap();
        assert_eq!(report.entries, size);
    }

    fn files(&self) -> usize {
        count_files(&self.public())
    }
}

fn publisher(folder: &std::path::Path) -> Publisher {
    let objects = LocalFileSystem::new_with_prefix(folder).unwrap();
    Publisher::new(Arc::new(objects), Duration::from_secs(1))
}

fn count_files(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { count_files(&path) } else { 1 }
        })
        .sum()
}

#[test]
fn a_folder_alone_is_enough_for_its_readers_at_every_size() {
    let bench = Bench::new();
    bench.publish().unwrap();
    bench.assert_readable(0);
    let mut size = 0;
    for more in [1, 2, 250, 3, 1, 255, 257, 30] {
        bench.append(more);
        size += more;
        bench.publish().unwrap();
        bench.assert_readable(size);
        assert_eq!(bench.publisher.progress().size, Some(size));
    }
    // Partial forms of what is full are gone: 799 entries are 3 full tiles and a partial one, a tile
    // above, as many bundles as tiles below, and the checkpoint. Of what is partial older forms stay.
    let beyond_full = bench.files() - (3 + 3 + 1);
    let above_and_partial = 2 + 2 + 4;
    assert!(beyond_full <= above_and_partial, "{} files", bench.files());
}

#[test]
fn a_publisher_that_died_anywhere_goes_on_where_the_checkpoint_is() {
    let bench = Bench::new();
    bench.append(300);
    bench.publish().unwrap();
    bench.append(300);
    // It dies after any number of objects: those are there, the checkpoint is not.
    for written in 0..6 {
        let resources: Vec<_> = Resource::since(300, 600).take(written).collect();
        let folder = folder_of(&bench.shown());
        let some = bench
            .publisher
            .publish_some(&bench.store, &folder, resources, 600);
        bench.runtime.block_on(some).unwrap();
        let size_before = SignedSize::of(&bench);
        assert_eq!(size_before, 300);
    }
    let next = Bench {
        publisher: publisher(&bench.public()),
        ..bench
    };
    next.runtime
        .block_on(next.publisher.check(&next.store))
        .unwrap();
    assert_eq!(next.publisher.progress().size, Some(300));
    next.publish().unwrap();
    next.assert_readable(600);
}

/// The size that the published checkpoint says.
struct SignedSize;

impl SignedSize {
    fn of(bench: &Bench) -> u64 {
        let note = std::fs::read_to_string(bench.public().join("e1/checkpoint")).unwrap();
        note.lines().nth(1).unwrap().parse().unwrap()
    }
}

#[test]
fn a_copy_that_is_newer_than_the_database_or_of_another_history_is_found_and_left_alone() {
    let bench = Bench::new();
    bench.append(5);
    bench.publish().unwrap();
    let newer = std::fs::read(bench.public().join("e1/checkpoint")).unwrap();
    // Another database by the same key: one that is shorter, then one that has another root.
    let other = Bench::new();
    std::fs::create_dir_all(other.public().join("e1")).unwrap();
    let head = other.shown();
    let note = |size: u64, root| {
        let origin = KeyName::new(&head.origin).unwrap();
        let checkpoint = berth_ledger::checkpoint::Checkpoint {
            origin: origin.clone(),
            size,
            root,
        };
        let signer = berth_ledger::note::Signer::new(origin, keys().ledger);
        checkpoint.sign(&[&signer]).to_string()
    };
    other.append(3);
    let foreign_root = bench.shown().root;
    let place = other.public().join("e1/checkpoint");
    for (text, is_expected) in [
        (
            note(7, foreign_root),
            (|error| {
                matches!(
                    error,
                    PublishError::RolledBack {
                        published: 7,
                        found: 3
                    }
                )
            }) as fn(&PublishError) -> bool,
        ),
        (note(2, foreign_root), |error| {
            matches!(error, PublishError::Forked { size: 2 })
        }),
        (String::from_utf8(newer).unwrap(), |error| {
            matches!(error, PublishError::Foreign { .. })
        }),
    ] {
        std::fs::write(&place, &text).unwrap();
        let checked = other.runtime.block_on(other.publisher.check(&other.store));
        let error = checked.unwrap_err();
        assert!(is_expected(&error), "{error:?}");
        let published = other.publish().unwrap_err();
        assert!(is_expected(&published), "{published:?}");
        assert_eq!(std::fs::read_to_string(&place).unwrap(), text);
    }
}

#[test]
fn a_store_that_does_not_take_anything_makes_the_copy_old_and_nothing_else() {
    let bench = Bench::new();
    bench.append(3);
    bench.publish().unwrap();
    // A file is where a folder belongs.
    std::fs::remove_dir_all(bench.public().join("e1/tile")).unwrap();
    std::fs::write(bench.public().join("e1/tile"), "").unwrap();
    bench.append(3);
    let failed = bench.publish().unwrap_err();
    assert!(matches!(failed, PublishError::Objects { .. }), "{failed:?}");
    assert!(!failed.is_rollback());
    assert_eq!(SignedSize::of(&bench), 3);
    std::fs::remove_file(bench.public().join("e1/tile")).unwrap();
    bench.publish().unwrap();
    assert_eq!(bench.publisher.progress().size, Some(6));
}

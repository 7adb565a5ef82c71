//! Importing, with a checker that is a shell script.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

struct Bench {
    folder: tempfile::TempDir,
    images: Images,
    vmm: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let vmm = folder.path().join("vmm");
        let script = "#!/bin/sh\nread -r line\ncase $line in kernel*) echo checked;; \
                      *) echo 'no magic' >&2; exit 65;; esac\n";
        std::fs::write(&vmm, script).unwrap();
        std::fs::set_permissions(&vmm, std::fs::Permissions::from_mode(0o755)).unwrap();
        let images = Images::new(folder.path().join("images")).unwrap();
        Self {
            folder,
            images,
            vmm,
        }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn source(&self) -> ImageSource {
        ImageSource {
            name: "debian-12".parse().unwrap(),
            kernel: self.file("vmlinuz", b"kernel image\n"),
            initrd: Some(self.file("initrd.img", b"initrd")),
            disk: self.file("root.raw", &[7; 1024]),
            cmdline: DEFAULT_CMDLINE.to_owned(),
        }
    }

    fn left(&self) -> Vec<String> {
        std::fs::read_dir(self.folder.path().join("images"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[track_caller]
    fn refused(&self, source: &ImageSource, words: &str) {
        let error = self.images.import(source, &self.vmm).unwrap_err();
        let chain = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
        );
        assert!(chain.contains(words), "{chain}");
        assert_eq!(self.left(), Vec::<String>::new());
    }
}

#[test]
fn an_imported_image_opens_and_is_listed() {
    let bench = Bench::new();
    let source = bench.source();
    bench.images.import(&source, &bench.vmm).unwrap();
    let image = bench.images.open(&source.name).unwrap();
    let mut kernel = String::new();
    (&image.kernel).read_to_string(&mut kernel).unwrap();
    assert_eq!(
        (kernel.as_str(), image.manifest.disk_bytes),
        ("checked\n", 1024)
    );
    let listed = bench.images.list().unwrap();
    assert_eq!(
        listed,
        [ObservedImage {
            name: "debian-12".to_owned(),
            digest: image.digest,
            disk_mib: 1,
        }]
    );
}

#[test]
fn what_is_not_what_it_should_be_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let mut source = bench.source();
    source.kernel = bench.file("text", b"hello\n");
    bench.refused(&source, "--kernel: ");
    bench.refused(&source, "is not a kernel: no magic");
    let mut source = bench.source();
    source.disk = bench.file("short", &[0; 700]);
    bench.refused(&source, "not a whole number of 512-byte sectors");
    source.disk = bench.file("qcow2", &[b"QFI\xfb".as_slice(), &[0; 508]].concat());
    bench.refused(&source, "qemu-img convert");
    let mut source = bench.source();
    source.initrd = Some(bench.file("empty", b""));
    bench.refused(&source, "--initrd");
    let mut source = bench.source();
    source.disk = bench.folder.path().join("missing");
    bench.refused(&source, "the file given as --disk");
    let mut source = bench.source();
    source.cmdline = "x".repeat(3000);
    bench.refused(&source, "--cmdline");
}

#[test]
fn an_image_never_changes_under_its_name() {
    let bench = Bench::new();
    bench.images.import(&bench.source(), &bench.vmm).unwrap();
    let before = bench.images.list().unwrap();
    let again = bench.images.import(&bench.source(), &bench.vmm);
    assert!(matches!(again, Err(ImportImageError::Exists { .. })));
    assert_eq!(bench.images.list().unwrap(), before);
}

#[test]
fn the_rest_of_an_import_that_was_killed_goes_with_the_next() {
    let bench = Bench::new();
    let rest = bench.folder.path().join("images/.new-x");
    std::fs::create_dir(&rest).unwrap();
    std::fs::write(rest.join("disk.raw"), b"half").unwrap();
    assert_eq!(bench.images.list().unwrap(), []);
    bench.images.import(&bench.source(), &bench.vmm).unwrap();
    assert_eq!(bench.left(), ["debian-12"]);
}

#[test]
fn a_truncated_file_makes_the_image_unusable() {
    let bench = Bench::new();
    let source = bench.source();
    bench.images.import(&source, &bench.vmm).unwrap();
    let disk = bench.folder.path().join("images/debian-12/disk.raw");
    std::fs::write(disk, [0; 512]).unwrap();
    let error = bench.images.open(&source.name).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image debian-12 is damaged: disk.raw has 512 bytes, 1024 expected"
    );
    assert_eq!(bench.images.list().unwrap(), []);
    assert!(matches!(
        bench.images.open(&"other".parse().unwrap()),
        Err(OpenImageError::Unknown { .. })
    ));
}

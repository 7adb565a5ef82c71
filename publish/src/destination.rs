//! The object store that a URL names, with its settings.
//!
//! Settings of S3 are AWS's usual variables; systemd's credentials of the same names in lower case go
//! before them. No value of a setting is ever part of a message.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use object_store::aws::AmazonS3ConfigKey;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

/// Open the store. Nothing is asked of it yet.
pub(crate) fn open(url: &str, credentials: Option<&Path>) -> Result<Arc<dyn ObjectStore>> {
    let parsed = Url::parse(url).with_context(|| {
        format!("the destination {url:?} is not a URL such as s3://bucket/prefix")
    })?;
    ensure!(
        parsed.password().is_none() && parsed.username().is_empty(),
        "the destination's URL must not have credentials: set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY"
    );
    let (scheme, _) = ObjectStoreScheme::parse(&parsed)
        .with_context(|| format!("the destination {url:?} is of no known kind"))?;
    ensure!(
        matches!(
            scheme,
            ObjectStoreScheme::AmazonS3 | ObjectStoreScheme::Local
        ),
        "the destination {url:?} must be s3://bucket/prefix or file:///folder"
    );
    let mut settings = from_environment();
    if let Some(folder) = credentials {
        settings.extend(from_credentials(folder)?);
    }
    let (store, prefix) = object_store::parse_url_opts(&parsed, settings)
        .with_context(|| format!("the destination {url:?} cannot be used"))?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

fn from_environment() -> Vec<(String, String)> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let value = value.into_string().ok()?;
        name.starts_with("AWS_")
            .then(|| (name.to_ascii_lowercase(), value))
    });
    variables.collect()
}

/// Each file whose name is that of a setting is its value.
fn from_credentials(folder: &Path) -> Result<Vec<(String, String)>> {
    let reading = || format!("reading the credentials in {}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.starts_with("aws_") || name.parse::<AmazonS3ConfigKey>().is_err() {
            continue;
        }
        let value = std::fs::read_to_string(entry.path())
            .with_context(|| format!("reading the credential {name}"))?;
        found.push((name, value.trim_end().to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_that_is_none_is_refused_with_what_it_should_be() {
        for (url, said) in [
            ("bucket/prefix", "s3://bucket/prefix"),
            ("s3://key:secret@bucket/prefix", "AWS_SECRET_ACCESS_KEY"),
            ("memory:///x", "must be s3://"),
            ("gs://bucket/x", "must be s3://"),
        ] {
            let error = open(url, None).err().map(|error| format!("{error:#}"));
            let error = error.unwrap_or_default();
            assert!(error.contains(said), "{url}: {error}");
            assert!(!error.contains(":secret"), "{error}");
        }
    }

    #[test]
    fn credentials_are_the_files_that_are_called_like_a_setting() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("aws_access_key_id", "id\n"),
            ("aws_secret_access_key", "secret\n"),
            ("other", "x"),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut found = from_credentials(folder.path()).unwrap();
        found.sort();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            found,
            [
                pair("aws_access_key_id", "id"),
                pair("aws_secret_access_key", "secret")
            ]
        );
    }
}

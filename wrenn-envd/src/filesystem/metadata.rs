//! What an uploader attaches to a file: extended attributes `user.e2b.<name>`, the names
//! that existing clients expect to find.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use http::HeaderMap;
use rustix::fs::{XattrFlags, fsetxattr, lgetxattr, lgetxattr_query, llistxattr, llistxattr_query};
use wrenn_proto::http::METADATA_HEADER_PREFIX;

const PREFIX: &str = "user.e2b.";

/// Limits of the kernel, xattr(7).
const MAX_NAME: usize = 255;
const MAX_VALUE: usize = 64 * 1024;
const MAX_LIST: usize = 64 * 1024;

/// All metadata of an entry; none if its file system keeps none.
pub fn read(path: &Path) -> BTreeMap<String, String> {
    // Almost no file has any, so the first call only asks how much there is.
    let mut list = match llistxattr_query(path) {
        Ok(size) if (1..=MAX_LIST).contains(&size) => vec![0; size],
        _ => return BTreeMap::new(),
    };
    let Ok(size) = llistxattr(path, &mut list[..]) else {
        return BTreeMap::new();
    };
    list[..size]
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter_map(|name| Some((name.strip_prefix(PREFIX)?, value(path, name)?)))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn value(path: &Path, name: &str) -> Option<String> {
    let size = lgetxattr_query(path, name)
        .ok()
        .filter(|size| *size <= MAX_VALUE)?;
    let mut value = vec![0; size];
    let size = lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(size);
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// Attaches metadata to a new file.
pub fn write(file: &File, metadata: &BTreeMap<String, String>) -> io::Result<()> {
    for (name, value) in metadata {
        fsetxattr(
            file,
            format!("{PREFIX}{name}"),
            value.as_bytes(),
            XattrFlags::empty(),
        )?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("metadata header '{0}' has no name after the prefix, or too long a one")]
    Name(String),
    #[error("the value of metadata '{0}' is not printable ASCII, or too long")]
    Value(String),
}

/// The metadata that an upload's headers bring. Header names have no case, so the
/// names come out in lower case.
pub fn from_headers(headers: &HeaderMap) -> Result<BTreeMap<String, String>, HeaderError> {
    let mut metadata = BTreeMap::new();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix(METADATA_HEADER_PREFIX) else {
            continue;
        };
        if name.is_empty() || PREFIX.len() + name.len() > MAX_NAME {
            return Err(HeaderError::Name(header.to_string()));
        }
        let value = value
            .to_str()
            .ok()
            .filter(|value| value.len() <= MAX_VALUE)
            .ok_or_else(|| HeaderError::Value(name.to_owned()))?;
        metadata.insert(name.to_owned(), value.to_owned());
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn takes_only_metadata_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("x-metadata-author", HeaderValue::from_static("Ada"));
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        let metadata = from_headers(&headers).unwrap();
        assert_eq!(metadata, [("author".to_owned(), "Ada".to_owned())].into());
        headers.insert("x-metadata-", HeaderValue::from_static("x"));
        assert!(matches!(from_headers(&headers), Err(HeaderError::Name(_))));
    }

    #[test]
    fn refuses_values_that_are_not_text() {
        let mut headers = HeaderMap::new();
        headers.insert("x-metadata-a", HeaderValue::from_bytes(&[0xff]).unwrap());
        assert_eq!(
            from_headers(&headers),
            Err(HeaderError::Value("a".to_owned()))
        );
    }
}

//! Secrets in the configuration: never printed, compared in constant time, optionally read from a file of their own.

use std::{fs, io, path::Path};

pub use secrecy::ExposeSecret;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

/// A string that is never printed and is zeroed on drop.
///
/// Comparison takes constant time for strings of equal length, so a configuration that contains secrets can be
/// compared as a whole.
#[derive(Clone, Debug, Deserialize)]
pub struct SecretString(secrecy::SecretString);

impl ExposeSecret<str> for SecretString {
    fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for SecretString {
    fn eq(&self, other: &Self) -> bool {
        self.expose_secret().as_bytes().ct_eq(other.expose_secret().as_bytes()).into()
    }
}

impl Eq for SecretString {}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// A secret that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Both the key and its `_file` twin are set.
    #[error("both the value and its `_file` are set; keep one of them")]
    Both,
    /// The file does not exist or is not readable.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file's path, as configured.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is empty.
    #[error("{0} is empty")]
    Empty(String),
}

impl SecretError {
    /// The key to report for a secret at `key`: its `_file` twin if the file is at fault.
    #[must_use]
    pub fn key(&self, key: &str) -> String {
        match self {
            Self::Both => key.to_owned(),
            Self::Unreadable { .. } | Self::Empty(_) => format!("{key}_file"),
        }
    }
}

/// The secret set in the configuration itself, or in the file it names (without a trailing newline).
///
/// # Errors
///
/// [`SecretError`] if both are set, or if the file cannot be read or is empty.
pub fn inline_or_file(inline: Option<&SecretString>, file: Option<&Path>) -> Result<Option<SecretString>, SecretError> {
    match (inline, file) {
        (Some(_), Some(_)) => Err(SecretError::Both),
        (Some(secret), None) => Ok(Some(secret.clone())),
        (None, Some(path)) => from_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

/// Reads a secret from a file, without a trailing newline.
///
/// # Errors
///
/// [`SecretError`] if the file cannot be read or is empty.
pub fn from_file(path: &Path) -> Result<SecretString, SecretError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| SecretError::Unreadable { path: name.clone(), source })?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(SecretError::Empty(name));
    }
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let printed = format!("{:?}", SecretString::from("swordfish"));
        assert!(!printed.contains("swordfish"), "{printed}");
    }

    #[test]
    fn secrets_are_equal_if_their_texts_are() {
        assert_eq!(SecretString::from("swordfish"), SecretString::from("swordfish".to_owned()));
        for other in ["", "swordfis", "swordfisH", "swordfish "] {
            assert_ne!(SecretString::from("swordfish"), SecretString::from(other));
        }
    }

    #[test]
    fn two_sources_of_one_secret_are_an_error() {
        let inline = SecretString::from("a");
        let both = inline_or_file(Some(&inline), Some(Path::new("b")));
        assert!(matches!(both, Err(SecretError::Both)));
    }
}

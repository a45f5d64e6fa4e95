//! The key that a server's certificate must have: `sha256/` and the base64 of the SHA-256 of its
//! `SubjectPublicKeyInfo` in DER, as curl's `--pinnedpubkey` writes it.
//!
//! It stays the same when a certificate is renewed for the same key, and needs no CA.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};

const SCHEME: &str = "sha256/";

/// The SHA-256 of a certificate's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// From the hash.
    #[must_use]
    pub fn new(hash: [u8; 32]) -> Self {
        Pin(hash)
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hash = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
        // curl writes two slashes.
        let found = text
            .strip_prefix(SCHEME)
            .and_then(|rest| hash(rest).or_else(|| rest.strip_prefix('/').and_then(hash)));
        found.map(Pin).ok_or_else(|| {
            let text: String = text.chars().take(80).collect();
            format!("\"{text}\" is not the hash of a key: sha256/ and 44 letters of base64")
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        let pin = Pin::new([7; 32]);
        let text = pin.to_string();
        assert_eq!(text, "sha256/BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
        assert_eq!(text.parse(), Ok(pin));
        assert_eq!(text.replace('/', "//").parse(), Ok(pin), "as curl writes it");
        let slashes = Pin::new([0xff; 32]);
        assert_eq!(slashes.to_string().parse(), Ok(slashes), "base64 may begin with a slash");
        for bad in ["", "sha256/", "sha256/BwcH", &text[7..], &text.replace("256", "1"), "sha256/é"]
        {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }
}

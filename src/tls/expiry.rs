//! Until when the certificates in a file are good.
//!
//! Reads only the dates, from the DER of RFC 5280; whether a certificate can be used is rustls' matter.
//! Of bad input it says that it is none, whatever it holds.

use std::path::Path;

use chrono::{DateTime, NaiveDateTime, Utc};

use super::{Error, certificates, fault};

/// When the first of the certificates in a file ends.
///
/// # Errors
/// When the file cannot be read, or holds no certificate.
pub fn expires(path: &Path) -> Result<DateTime<Utc>, Error> {
    let ends: Option<Vec<_>> = certificates(path)?.iter().map(|it| not_after(it)).collect();
    ends.and_then(|ends| ends.into_iter().min())
        .ok_or_else(|| fault(path, "holds something that is no certificate".to_owned()))
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Certificate → tbsCertificate → [version] serial, algorithm, issuer, validity → notBefore, notAfter.
fn not_after(der: &[u8]) -> Option<DateTime<Utc>> {
    let (_, certificate, _) = element(der).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, mut fields, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    for _ in ["serial", "algorithm", "issuer"] {
        fields = element(fields)?.2;
    }
    let (_, validity, _) = element(fields).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (tag, text, _) = element(element(validity)?.2)?;
    let text = std::str::from_utf8(text).ok()?;
    let text = match tag {
        // Two digits of the year: 50 to 99 are of the last century.
        UTC_TIME if text.get(..2)? >= "50" => format!("19{text}"),
        UTC_TIME => format!("20{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    Some(NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?.and_utc())
}

/// The tag, the content and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> (Vec<u8>, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["hub".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().to_vec(), certificate.pem())
    }

    #[test]
    fn the_first_end_of_a_file_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // From 2050 on the year has four digits.
        let both = [certificate(2061).1, certificate(2031).1].concat();
        std::fs::write(file.path(), both).unwrap();
        assert_eq!(expires(file.path()).unwrap().to_rfc3339(), "2031-03-04T00:00:00+00:00");
        assert_eq!(not_after(&certificate(2061).0).unwrap().to_string(), "2061-03-04 00:00:00 UTC");
        std::fs::write(file.path(), "nothing").unwrap();
        assert!(expires(file.path()).unwrap_err().to_string().contains("holds no certificate"));
    }

    #[test]
    fn what_is_cut_off_or_changed_is_none_or_another_date() {
        let (der, _) = certificate(2031);
        for length in 0..der.len().min(300) {
            assert!(not_after(&der[..length]).is_none(), "{length}");
            let mut changed = der.clone();
            changed[length] ^= 0xff;
            let _ = not_after(&changed);
        }
    }
}

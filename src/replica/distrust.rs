//! Why an upstream and this node do not believe each other's certificate, in words that say what to do.
//!
//! TLS names the reason deep inside of what a connection says; everything else is none of its
//! business.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError};

/// What is in the way at `url`; none where it is no certificate.
pub(super) fn of(error: &(dyn Error + 'static), url: &str) -> Option<String> {
    match tls_error(error)? {
        rustls::Error::InvalidCertificate(why) => Some(format!("{url}: {}", theirs(why))),
        rustls::Error::AlertReceived(why) => ours(*why).map(|why| format!("{url} {why}")),
        _ => None,
    }
}

/// An `io::Error` shows what it holds as its own text, and not as its source.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match held {
            Some(held) => Some(held as &'a (dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Why the upstream's is not believed here.
fn theirs(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => "its certificate is not signed by an authority that this \
             machine trusts; name that authority's in [tls] ca, or the certificate's key in the feed's \
             `pin`"
            .to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has ended; exchange it there, and see that this machine's clock is right"
                .to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; see that the clocks of both machines are right".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name; write the feed's `upstream` with a name that it is \
             for, or have it made for this one"
                .to_owned()
        }
        other => format!("its certificate is not believed: {other}"),
    }
}

/// Why the upstream does not believe ours.
fn ours(why: AlertDescription) -> Option<String> {
    let why = match why {
        AlertDescription::UnknownCA => "does not trust the authority that signed",
        AlertDescription::CertificateExpired => "says that it has ended:",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRequired => "asks for another one than",
        _ => return None,
    };
    Some(format!(
        "{why} the certificate that this node shows; set the feed's `client_cert` and `client_key` to \
         one of the authority that is named there in [tls] client_ca"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://hub.example:7873/";

    fn said(error: rustls::Error) -> Option<String> {
        // As it comes from a connection: inside of one error and then another.
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        of(&error, URL)
    }

    #[test]
    fn a_certificate_that_is_not_believed_is_told_of_with_what_to_do() {
        for (why, part) in [
            (
                CertificateError::UnknownIssuer,
                "not signed by an authority that this machine trusts",
            ),
            (CertificateError::Expired, "has ended"),
            (CertificateError::NotValidYet, "not valid yet"),
            (CertificateError::NotValidForName, "for another name"),
            (CertificateError::Revoked, "not believed"),
        ] {
            let text = said(why.into()).unwrap();
            assert!(text.starts_with(URL) && text.contains(part), "{text}");
        }
        let text = said(rustls::Error::AlertReceived(AlertDescription::UnknownCA)).unwrap();
        assert!(text.starts_with(URL) && text.contains("client_cert"), "{text}");
    }

    #[test]
    fn what_is_no_certificate_is_left_alone() {
        assert_eq!(said(rustls::Error::DecryptError), None);
        assert_eq!(said(rustls::Error::AlertReceived(AlertDescription::CloseNotify)), None);
        assert_eq!(of(&io::Error::from(io::ErrorKind::ConnectionRefused), URL), None);
    }
}

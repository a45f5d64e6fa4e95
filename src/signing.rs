//! Signatures of commits: Ed25519 keys and signatures in OpenSSH's formats, as git writes them.
//!
//! A commit names its whole tree and, in its trailers, epoch and seq: who believes the signature of a
//! head believes all that lies below it. Keys lie in files that are read when they are used, so that
//! they can be exchanged while a node runs. The format is git's `gpg.format = ssh`: the header
//! `gpgsig` holds an `SSHSIG` (OpenSSH's PROTOCOL.sshsig) over the commit without that header.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ssh_key::{
    HashAlg, LineEnding, PrivateKey, PublicKey, SshSig,
    private::{Ed25519Keypair, KeypairData},
};

/// What git signs commits for.
const NAMESPACE: &str = "git";
/// The header of a commit that holds its signature.
const HEADER: &str = "gpgsig";
/// Far more keys than anybody has.
const MAX_TRUSTED: u64 = 1 << 20;

/// Why a commit is not signed, or not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or does not hold what it should.
    #[error("{path} {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The commit carries no signature that can be read.
    #[error("it carries no signature that can be read; the primary signs with `sign_with`")]
    Unsigned,
    /// The key is not one that is believed.
    #[error("it is signed by {fingerprint}, which is not in {path}")]
    Stranger {
        /// The key's fingerprint.
        fingerprint: String,
        /// Whom we believe.
        path: PathBuf,
    },
    /// The signature is for other bytes.
    #[error("its signature does not fit its bytes")]
    Forged,
    /// The system or the library refuses.
    #[error("cannot make a key or a signature: {0}")]
    Refused(String),
}

/// This folder's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A key to sign with, by its file.
#[derive(Debug, Clone)]
pub struct Signer(PathBuf);

impl Signer {
    /// A key that lies there and can be used.
    ///
    /// # Errors
    /// When it cannot be read, is not an Ed25519 key without a passphrase, or is readable by others.
    pub fn open(path: &Path) -> Result<Self> {
        let signer = Signer(path.to_owned());
        signer.key().map(|_| signer)
    }

    /// The commit with its signature.
    ///
    /// # Errors
    /// When the key cannot be used any more.
    pub fn sign(&self, commit: &[u8]) -> Result<Vec<u8>> {
        let refused = |error: ssh_key::Error| Error::Refused(error.to_string());
        let signature = self.key()?.sign(NAMESPACE, HashAlg::Sha512, commit).map_err(refused)?;
        let pem = signature.to_pem(LineEnding::LF).map_err(refused)?;
        let end = headers(commit).len();
        let mut signed = commit[..end].to_vec();
        // A header goes on where a line begins with a space.
        signed.extend(format!("\n{HEADER} {}", pem.trim_end().replace('\n', "\n ")).bytes());
        signed.extend(&commit[end..]);
        Ok(signed)
    }

    fn key(&self) -> Result<PrivateKey> {
        let path = &self.0;
        let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if about.permissions().mode() & 0o077 != 0 {
            let why = "can be read by others than its owner: `chmod 600` it, and make a new key where \
                       others were on this machine";
            return Err(fault(path, why));
        }
        let text = fs::read(path).map_err(|error| unreadable(path, &error))?;
        let key = PrivateKey::from_openssh(text)
            .map_err(|error| fault(path, format!("holds no private key: {error}")))?;
        match key.key_data() {
            KeypairData::Ed25519(_) => Ok(key),
            _ if key.is_encrypted() => {
                Err(fault(path, "has a passphrase; a daemon cannot type it"))
            }
            _ => Err(fault(path, "holds no Ed25519 key; `depsync key create` makes one")),
        }
    }
}

/// The keys whose commits are believed: a file in the format of OpenSSH's `allowed_signers`.
#[derive(Debug, Clone)]
pub struct Trusted(PathBuf);

impl Trusted {
    /// Keys that lie there and can be read.
    ///
    /// # Errors
    /// When a line cannot be understood: then nobody could tell whom it means to trust.
    pub fn open(path: &Path) -> Result<Self> {
        let trusted = Trusted(path.to_owned());
        trusted.keys().map(|_| trusted)
    }

    /// Whether a commit is signed by one of them. Reads the file.
    ///
    /// # Errors
    /// When it is not, or the file cannot be read.
    pub fn check(&self, commit: &[u8]) -> Result<()> {
        let (unsigned, pem) = split(commit).ok_or(Error::Unsigned)?;
        let signature = SshSig::from_pem(&pem).map_err(|_| Error::Unsigned)?;
        // One way to write it only: a commit cannot be given another id by its armour.
        if signature.to_pem(LineEnding::LF).map(String::into_bytes) != Ok(pem) {
            return Err(Error::Unsigned);
        }
        let signer = PublicKey::new(signature.public_key().clone(), "");
        if !self.keys()?.iter().any(|key| key.key_data() == signer.key_data()) {
            let fingerprint = signer.fingerprint(HashAlg::Sha256).to_string();
            return Err(Error::Stranger { fingerprint, path: self.0.clone() });
        }
        signer.verify(NAMESPACE, &unsigned, &signature).map_err(|_| Error::Forged)
    }

    fn keys(&self) -> Result<Vec<PublicKey>> {
        let path = &self.0;
        let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if about.len() > MAX_TRUSTED {
            return Err(fault(path, "is far too large to be a list of keys"));
        }
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let mut keys = Vec::new();
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            keys.extend(trusted(line).map_err(|why| fault(path, format!("line {at}: {why}")))?);
        }
        if keys.is_empty() {
            return Err(fault(path, "names no key for commits, so nothing would be believed"));
        }
        Ok(keys)
    }
}

/// The key of a line `PRINCIPALS [namespaces="…"] TYPE BASE64 [COMMENT]`; none where it is for
/// something other than commits.
fn trusted(line: &str) -> std::result::Result<Option<PublicKey>, String> {
    let mut words = line.split_whitespace().skip(1).peekable();
    let mut is_for_commits = true;
    if let Some(options) = words.next_if(|word| !is_key_type(word)) {
        let namespaces =
            options.strip_prefix("namespaces=\"").and_then(|rest| rest.strip_suffix('"'));
        let namespaces = namespaces.ok_or_else(|| {
            format!("the options {options} are not understood; only namespaces=\"git\" is")
        })?;
        is_for_commits = namespaces.split(',').any(|name| name == NAMESPACE);
    }
    let (kind, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let key = PublicKey::from_openssh(&format!("{kind} {key}"))
        .map_err(|error| format!("holds no public key: {error}"))?;
    Ok(is_for_commits.then_some(key))
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| word.starts_with(kind))
}

/// Makes a key: the private half at `path`, for its owner alone, and the public half beside it in
/// `.pub`. Returns the line that mirrors put into their `trusted_keys`.
///
/// # Errors
/// When something lies there already, or it cannot be written.
pub fn create(path: &Path, name: &str) -> Result<String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Error::Refused(error.to_string()))?;
    let refused = |error: ssh_key::Error| Error::Refused(error.to_string());
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, name).map_err(refused)?;
    let public = key.public_key().to_openssh().map_err(refused)?;
    let mut file = path.as_os_str().to_owned();
    file.push(".pub");
    write_new(path, 0o600, &key.to_openssh(LineEnding::LF).map_err(refused)?)?;
    write_new(Path::new(&file), 0o644, &format!("{public}\n"))?;
    Ok(format!("{name} namespaces=\"{NAMESPACE}\" {public}"))
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| fault(path, format!("cannot be made: {error}")))
}

/// The headers of a commit, without the newline behind them.
fn headers(commit: &[u8]) -> &[u8] {
    let end = commit.windows(2).position(|pair| pair == b"\n\n").unwrap_or(commit.len());
    &commit[..end]
}

/// Whether a commit carries a signature, good or not.
pub fn is_signed(commit: &[u8]) -> bool {
    split(commit).is_some()
}

/// A commit without its signature, and that signature.
fn split(commit: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let start = format!("\n{HEADER} ");
    let (headers, start) = (headers(commit), start.as_bytes());
    let from = headers.windows(start.len()).position(|text| text == start)?;
    let mut end = from + start.len();
    let mut pem = Vec::new();
    loop {
        let line = &headers[end..];
        let length = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
        pem.extend(&line[..length]);
        pem.push(b'\n');
        end += length;
        match headers[end..].strip_prefix(b"\n ") {
            Some(_) => end += 2,
            None => break,
        }
    }
    Some(([&commit[..from], &commit[end..]].concat(), pem))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    fault(path, format!("cannot be read: {error}"))
}

fn fault(path: &Path, why: impl Into<String>) -> Error {
    Error::File { path: path.to_owned(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &[u8] = b"tree 0000000000000000000000000000000000000000\n\
        author a <n> 1 +0000\ncommitter a <n> 1 +0000\n\nsubject\n\nDepsync-Seq: 1\n";

    struct Keys {
        dir: tempfile::TempDir,
    }

    impl Keys {
        fn new() -> Self {
            Keys { dir: tempfile::tempdir().unwrap() }
        }

        fn key(&self, name: &str) -> (Signer, String) {
            let path = self.dir.path().join(name);
            let line = create(&path, name).unwrap();
            (Signer::open(&path).unwrap(), line)
        }

        fn trust(&self, text: &str) -> Result<Trusted> {
            let path = self.dir.path().join("allowed_signers");
            fs::write(&path, text).unwrap();
            Trusted::open(&path)
        }
    }

    #[test]
    fn only_what_a_trusted_key_has_signed_is_believed() {
        let keys = Keys::new();
        let ((ours, line), (theirs, other)) = (keys.key("ours"), keys.key("theirs"));
        let signed = ours.sign(COMMIT).unwrap();
        let trusted = keys.trust(&format!("# ours\n\n{line}\n")).unwrap();
        trusted.check(&signed).unwrap();
        assert!(matches!(trusted.check(COMMIT), Err(Error::Unsigned)));
        let stranger = trusted.check(&theirs.sign(COMMIT).unwrap());
        assert!(matches!(stranger, Err(Error::Stranger { .. })));
        for byte in 0..signed.len() {
            let mut flipped = signed.clone();
            flipped[byte] ^= 1;
            assert!(trusted.check(&flipped).is_err(), "byte {byte}: {:?}", flipped.get(byte));
        }
        // Exchanged: both for a while, then only the new one.
        keys.trust(&format!("{line}\n{other}\n")).unwrap();
        trusted.check(&signed).unwrap();
        trusted.check(&theirs.sign(COMMIT).unwrap()).unwrap();
        keys.trust(&other).unwrap();
        assert!(trusted.check(&signed).is_err());
    }

    #[test]
    fn a_signature_for_something_else_is_none_for_commits() {
        let keys = Keys::new();
        let (ours, line) = keys.key("ours");
        let files = line.replace("\"git\"", "\"file\"");
        assert!(keys.trust(&files).unwrap_err().to_string().contains("names no key"));
        let both = line.replace("\"git\"", "\"file,git\"");
        keys.trust(&both).unwrap().check(&ours.sign(COMMIT).unwrap()).unwrap();
        for bad in ["", "x", "* ssh-ed25519 AAAA", "a cert-authority ssh-ed25519 AAAA"] {
            assert!(keys.trust(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let keys = Keys::new();
        keys.key("ours");
        let path = keys.dir.path().join("ours");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create(&path, "again").is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Signer::open(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(Signer::open(&keys.dir.path().join("ours.pub")).is_err());
    }
}

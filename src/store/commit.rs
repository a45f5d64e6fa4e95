//! Commit objects: how ours are written and read.
//!
//! A commit is `<subject>`, an empty line, and the trailers `Depsync-Epoch`, `Depsync-Seq` and
//! `Depsync-Node`, which are the feed's head. There is at most one parent. What a person typed is
//! made to fit, so that stock git always reads the result.

use std::fmt::Write;

use bytes::Bytes;

use super::{Error, Result};
use crate::model::{Head, NodeId, Oid};

/// A commit as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub id: Oid,
    /// Epoch and seq from its trailers.
    pub head: Head,
    /// Who made it, from `Depsync-Node`.
    pub node: Option<NodeId>,
    /// The root's tree.
    pub tree: Oid,
    /// The commit before; none for the first.
    pub parent: Option<Oid>,
    /// Seconds since 1970, by the maker's clock.
    pub time: i64,
    /// The author's name.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
}

/// Who commits, and what the commit says.
#[derive(Debug, Clone)]
pub struct Signature {
    /// The author's name.
    pub author: String,
    /// The node that commits.
    pub node: NodeId,
    /// The epoch in which it owns the feed.
    pub epoch: u64,
    /// Seconds since 1970.
    pub time: i64,
    /// One line.
    pub subject: String,
}

const EPOCH: &str = "Depsync-Epoch";
const SEQ: &str = "Depsync-Seq";
const NODE: &str = "Depsync-Node";

/// The bytes of a commit.
pub(super) fn encode(by: &Signature, seq: u64, tree: Oid, parent: Option<Oid>) -> Vec<u8> {
    let mut text = format!("tree {tree}\n");
    let author = by.author.replace(['<', '>', '\n', '\r', '\0'], " ");
    let author = Some(author.trim()).filter(|name| !name.is_empty()).unwrap_or("depsync");
    let subject = by.subject.replace(['\n', '\r', '\0'], " ");
    let subject = Some(subject.trim()).filter(|line| !line.is_empty()).unwrap_or("Update");
    let Signature { node, epoch, time, .. } = by;
    // git has no time before 1970.
    let time = (*time).max(0);
    let node = node.as_str();
    if let Some(parent) = parent {
        writeln!(text, "parent {parent}").expect("a String takes all");
    }
    for role in ["author", "committer"] {
        writeln!(text, "{role} {author} <{node}> {time} +0000").expect("a String takes all");
    }
    write!(text, "\n{subject}\n\n{EPOCH}: {epoch}\n{SEQ}: {seq}\n{NODE}: {node}\n")
        .expect("a String takes all");
    text.into_bytes()
}

/// Reads a commit of a feed.
pub(super) fn parse(id: Oid, raw: &Bytes) -> Result<Commit> {
    let bad = |why: &str| Error::damaged(format!("commit {id}"), why);
    let text = String::from_utf8_lossy(raw);
    let (headers, message) = text.split_once("\n\n").unwrap_or((&text, ""));
    let header = |key| headers.lines().filter_map(move |line| value_of(line, key, " "));
    let oid = |hex: &str| hex.parse::<Oid>().map_err(|e| bad(&e.to_string()));
    let tree = header("tree").next().ok_or_else(|| bad("it has no tree"))?;
    let mut parents = header("parent");
    let parent = parents.next().map(oid).transpose()?;
    if parents.next().is_some() {
        return Err(bad("it is a merge, and a feed is one line of commits"));
    }
    // Only the last paragraph holds trailers, whatever the subject says.
    let trailers = message.trim_end().rsplit("\n\n").next().unwrap_or_default();
    let trailer = |key| trailers.lines().find_map(move |line| value_of(line, key, ": "));
    let number = |key| {
        let number = trailer(key).and_then(|value| value.parse().ok());
        number.ok_or_else(|| bad(&format!("it has no number in the trailer {key}")))
    };
    let author = header("author").next().and_then(|line| line.rsplit_once('>')).unwrap_or_default();
    Ok(Commit {
        id,
        head: Head { epoch: number(EPOCH)?, seq: number(SEQ)?, commit: id },
        node: trailer(NODE).and_then(|name| name.parse().ok()),
        tree: oid(tree)?,
        parent,
        time: author.1.split_whitespace().next().and_then(|t| t.parse().ok()).unwrap_or(0),
        author: author.0.split(" <").next().unwrap_or_default().to_owned(),
        subject: message.lines().next().unwrap_or_default().to_owned(),
    })
}

fn value_of<'a>(line: &'a str, key: &str, separator: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(author: &str, subject: &str) -> Signature {
        let (author, subject) = (author.to_owned(), subject.to_owned());
        Signature { author, node: "n1".parse().unwrap(), epoch: 3, time: 1_700_000_000, subject }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (tree, parent) = (Oid::from_bytes([1; 20]), Oid::from_bytes([2; 20]));
        let id = Oid::from_bytes([3; 20]);
        for (author, subject, name, line) in [
            ("Ä B", "deploy a.war", "Ä B", "deploy a.war"),
            ("", "", "depsync", "Update"),
            ("x <y>\n", "a\n\nDepsync-Seq: 9", "x  y", "a  Depsync-Seq: 9"),
        ] {
            let raw = encode(&by(author, subject), 7, tree, Some(parent)).into();
            let commit = parse(id, &raw).unwrap();
            assert_eq!(commit.head, Head { epoch: 3, seq: 7, commit: id });
            assert_eq!((commit.tree, commit.parent), (tree, Some(parent)));
            assert_eq!((&commit.author[..], &commit.subject[..]), (name, line));
            assert_eq!((commit.time, commit.node), (1_700_000_000, Some("n1".parse().unwrap())));
        }
    }

    #[test]
    fn what_is_no_commit_of_a_feed_is_refused() {
        let id = Oid::from_bytes([3; 20]);
        let good = String::from_utf8(encode(&by("a", "b"), 7, id, Some(id))).unwrap();
        assert!(parse(id, &good.clone().into()).is_ok());
        for bad in [
            String::new(),
            good.replace("Depsync-Seq", "Depsync-Sequence"),
            good.replace("Seq: 7", "Seq: -7"),
            good.replace("tree 0", "tree x"),
            good.replace("author ", &format!("parent {id}\nauthor ")),
        ] {
            assert!(parse(id, &bad.into()).is_err());
        }
    }
}

//! How a caller should react to a failure: one word, the same in every folder.

/// How a caller should react to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Back off and try again.
    Transient,
    /// Rebuild once from what is sound.
    Corrupt,
    /// Stop with the message.
    Fatal,
}

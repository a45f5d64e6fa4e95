//! Which metadata a feed keeps besides content, type and the executable bit.

/// Which metadata a feed keeps (`metadata = […]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "five independent switches of the configuration")]
pub struct Keep {
    /// Permission bits beyond the executable one.
    pub mode: bool,
    /// Modification times of files.
    pub mtime: bool,
    /// Folders that hold nothing.
    pub empty_dirs: bool,
    /// Owner and group, by name.
    pub owner: bool,
    /// Extended attributes: `user.*` and `security.capability`.
    pub xattrs: bool,
}

impl Keep {
    /// Nothing besides what git keeps.
    pub const NONE: Keep =
        Keep { mode: false, mtime: false, empty_dirs: false, owner: false, xattrs: false };

    /// All there is: what a mirror puts in place of what its primary recorded.
    pub const ALL: Keep =
        Keep { mode: true, mtime: true, empty_dirs: true, owner: true, xattrs: true };
}

impl Default for Keep {
    fn default() -> Self {
        Keep { mode: true, mtime: true, empty_dirs: true, ..Keep::NONE }
    }
}

//! The few system calls that the standard library does not have, and the one clock.
//!
//! The only place with unsafe code: leases, the user database, `sync_file_range`, the clock's state
//! and one option of sockets, which `rustix` lacks. Nothing here knows what a feed is, follows a
//! symbolic link, or changes how the process handles a signal.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    hash::Hash,
    io::{self, Read, Seek},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path},
    sync::{LazyLock, Mutex},
    time::SystemTime,
};

use rustix::{
    fs::{Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// The time of day. Whoever measures a duration takes `std::time::Instant`.
#[expect(clippy::disallowed_methods, reason = "this is the one clock")]
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Lets this process open as many files as the system allows it. The usual limit of 1,024 is there for
/// programs that use `select`, and is less than a node with many packs and followers needs.
///
/// # Errors
/// When the system refuses.
pub fn allow_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// Lets the calling thread run only when nothing else wants to, on processor and disk.
///
/// # Errors
/// When the system refuses; it then runs as all others do.
pub fn run_in_background() -> io::Result<()> {
    rustix::process::nice(19)?;
    // ioprio_set(IOPRIO_WHO_PROCESS, this thread, IOPRIO_CLASS_IDLE << 13)
    let (who, thread, idle): (libc::c_int, libc::c_int, libc::c_int) = (1, 0, 3 << 13);
    #[expect(unsafe_code, reason = "neither rustix nor libc wraps it")]
    // SAFETY: three numbers; the call touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_set, who, thread, idle) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps what a TCP socket holds and has not sent yet below `bytes`: whoever writes into it waits
/// until the other side takes something, and not only once megabytes lie in between.
///
/// # Errors
/// When the system refuses; on sockets of other kinds.
pub fn limit_unsent(socket: impl AsFd, bytes: u32) -> io::Result<()> {
    const SIZE: libc::socklen_t = 4;
    // SAFETY: the descriptor is open, and the kernel reads four bytes of a number that outlives the call.
    #[expect(unsafe_code, reason = "rustix does not know this option")]
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            SIZE,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `fcntl`'s number for choosing the signal of a lease break (`libc` does not name it).
const F_SETSIG: libc::c_int = 10;

/// What breaks a lease tells us by: ignored unless somebody handles it. The default, `SIGIO`, would
/// end the process; and an ignored disposition of ours would be inherited by hooks.
const LEASE_BREAK_SIGNAL: libc::c_int = libc::SIGURG;

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseError {
    /// Somebody has the file open for writing.
    Busy,
    /// Leases are not to be had: not our file, or a file system without them.
    Unavailable,
}

/// Proof that nobody holds a file open for writing; released when dropped.
///
/// Whoever opens the file for writing meanwhile waits for the release, at most
/// `/proc/sys/fs/lease-break-time` seconds.
#[derive(Debug)]
pub struct ReadLease<'a>(&'a File);

impl<'a> ReadLease<'a> {
    /// Takes a read lease on a regular file that was opened for reading only.
    ///
    /// # Errors
    /// `Busy` while anybody has the file open for writing; `Unavailable` where this cannot be known.
    pub fn take(file: &'a File) -> Result<Self, LeaseError> {
        // The signal comes first: a break between the two calls would send SIGIO.
        fcntl(file, F_SETSIG, LEASE_BREAK_SIGNAL).map_err(|_| LeaseError::Unavailable)?;
        match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(_) => Ok(Self(file)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(LeaseError::Busy),
            Err(_) => Err(LeaseError::Unavailable),
        }
    }

    /// Whether nobody has opened the file for writing since the lease was taken.
    #[must_use]
    pub fn still_held(&self) -> bool {
        fcntl(self.0, libc::F_GETLEASE, 0).is_ok_and(|held| held == libc::F_RDLCK)
    }
}

impl Drop for ReadLease<'_> {
    fn drop(&mut self) {
        // Fails only where the kernel has taken the lease away already.
        let _ = fcntl(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

#[expect(unsafe_code, reason = "rustix has no leases")]
fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open while `file` is borrowed; these commands take an int and touch
    // no memory of ours.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Makes these durable. Each waits in a thread of its own, so there should not be many: those that
/// wait at the same time wait for the same write of the file system's journal.
///
/// # Errors
/// What the first `fsync` that fails answers.
pub fn sync_together(these: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some((first, others)) = these.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let sync = |fd: BorrowedFd<'_>| Ok::<_, io::Error>(rustix::fs::fsync(fd)?);
        let others: Vec<_> = others.iter().map(|fd| scope.spawn(move || sync(*fd))).collect();
        let joined = others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let mut done = sync(*first);
        for other in joined {
            done = done.and(other);
        }
        done
    })
}

/// What the type of a file system says about events and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Others may change it without an event reaching us: it must be polled.
    pub network: bool,
    /// Of the FAT family: times in steps of up to 2 s, so that equal times prove nothing for that
    /// long; no modes of its own; and names that differ only in case are one.
    pub fat: bool,
    /// Its name, `local` for those that need no care.
    pub name: &'static str,
}

/// Kinds of file systems that need care, by `statfs` type (`linux/magic.h` and their sources).
const FILE_SYSTEMS: [(u64, FileSystem); 13] = [
    (0x6969, network("nfs")),
    (0x517b, network("smb")),
    (0xff53_4d42, network("cifs")),
    (0xfe53_4d42, network("smb2")),
    // sshfs, glusterfs, s3fs and their like: the type does not say which.
    (0x6573_5546, network("fuse")),
    (0x0102_1997, network("9p")),
    (0x00c3_6400, network("ceph")),
    (0x5346_414f, network("afs")),
    (0x7375_7245, network("coda")),
    (0x0116_1970, network("gfs2")),
    (0x7461_636f, network("ocfs2")),
    (0x4d44, FileSystem { network: false, fat: true, name: "vfat" }),
    (0x2011_bab0, FileSystem { network: false, fat: true, name: "exfat" }),
];

const fn network(name: &'static str) -> FileSystem {
    FileSystem { network: true, fat: false, name }
}

/// The kind of file system that an open file lies on.
///
/// # Errors
/// What `fstatfs` answers.
pub fn file_system(fd: impl AsFd) -> io::Result<FileSystem> {
    let stat = rustix::fs::fstatfs(fd)?;
    // The type is a signed word on some machines; its 32 bits are what the magic numbers are.
    #[expect(clippy::cast_sign_loss, reason = "only the low 32 bits count")]
    let magic = stat.f_type as u64 & 0xffff_ffff;
    let known = FILE_SYSTEMS.iter().find(|(number, _)| *number == magic).map(|(_, kind)| *kind);
    Ok(known.unwrap_or(FileSystem { network: false, fat: false, name: "local" }))
}

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this process may still use.
    pub free: u64,
    /// The whole file system.
    pub total: u64,
}

/// The room on the file system that holds `path`.
///
/// # Errors
/// What `statvfs` answers.
pub fn space(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
}

/// Whether something keeps this machine's clock right; none: nobody can tell.
#[must_use]
pub fn clock_is_kept() -> Option<bool> {
    let mut state = std::mem::MaybeUninit::<libc::timex>::zeroed();
    #[expect(unsafe_code, reason = "rustix does not wrap it")]
    // SAFETY: `timex` is plain numbers, for which zeroes stand; with `modes` 0 the call only fills it in.
    let (answer, state) = unsafe {
        let answer = libc::adjtimex(state.as_mut_ptr());
        (answer, state.assume_init())
    };
    (answer >= 0).then_some(answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

/// Opens `path`, which is relative to `dir` and has no `..`, without following any symbolic link; an
/// empty path is `dir` itself. The descriptor is closed on exec.
///
/// # Errors
/// `ELOOP` where a link stands in the way (`ENOTDIR` where `openat2` is not to be had), else what
/// the kernel answers.
pub fn open_beneath(dir: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    static OPENAT2: LazyLock<bool> = LazyLock::new(|| {
        openat2(rustix::fs::CWD, Path::new("."), OFlags::PATH, Mode::empty()).is_ok()
    });
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // Old kernels answer ENOSYS, some containers EPERM, which could mean other things for a file.
    let opened = if *OPENAT2 {
        openat2(&dir, path, flags, mode)
    } else {
        open_by_steps(&dir, path, flags, mode)
    };
    Ok(opened?)
}

fn openat2(dir: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: something was renamed while the kernel looked.
        match rustix::fs::openat2(&dir, path, flags, mode, resolve) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            answer => return answer,
        }
    }
}

fn open_by_steps(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(&dir, ".", step, Mode::empty())?;
    let Some(parent) = path.parent() else { return Err(Errno::XDEV) };
    for component in parent.components() {
        match component {
            Component::Normal(name) => at = rustix::fs::openat(&at, name, step, Mode::empty())?,
            Component::CurDir => {}
            _ => return Err(Errno::XDEV),
        }
    }
    rustix::fs::openat(&at, path.file_name().map_or(Path::new("."), Path::new), flags, mode)
}

/// Swaps two entries in one step.
///
/// # Errors
/// `EINVAL` where the file system cannot, else what the kernel answers.
pub fn exchange(dir_a: impl AsFd, a: &Path, dir_b: impl AsFd, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(dir_a, a, dir_b, b, RenameFlags::EXCHANGE)?)
}

/// Renames where nothing lies under the new name yet.
///
/// # Errors
/// `AlreadyExists`; `EINVAL` where the file system cannot; else what the kernel answers.
pub fn rename_new(dir_a: impl AsFd, a: &Path, dir_b: impl AsFd, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(dir_a, a, dir_b, b, RenameFlags::NOREPLACE)?)
}

/// Makes everything written so far to the file system of `fd` durable.
///
/// # Errors
/// What `syncfs` answers.
pub fn sync_file_system(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// Has the disk begin with a stretch of a file (0 bytes: up to its end), without waiting for it: a
/// sync at the end then has less to wait for. It makes nothing durable, and a file system that cannot
/// is none the worse.
pub fn start_writing(file: &File, offset: u64, bytes: u64) {
    let (Ok(offset), Ok(bytes)) = (offset.try_into(), bytes.try_into()) else { return };
    // SAFETY: it takes numbers only, and the descriptor is open for as long as `file` is borrowed.
    #[expect(unsafe_code, reason = "rustix has no sync_file_range")]
    let _ = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
    };
}

/// Copies all of `from` into the empty file `to`: shares the blocks where the file system can, else
/// copies within the kernel, else by blocks. Answers the number of bytes.
///
/// # Errors
/// What reading or writing answers.
pub fn copy(mut from: &File, mut to: &File) -> io::Result<u64> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(to.metadata()?.len());
    }
    from.rewind()?;
    let mut copied = 0;
    loop {
        // By stretches, so that the disk writes one while the next is copied.
        let stretch = io::copy(&mut (&mut from).take(STRETCH), &mut to)?;
        if stretch == 0 {
            return Ok(copied);
        }
        if copied + stretch >= STRETCH {
            start_writing(to, copied, stretch);
        }
        copied += stretch;
    }
}

/// How much is copied before the disk is told to begin with it.
const STRETCH: u64 = 1 << 20;

/// The name of a user, its number where it has none.
#[must_use]
pub fn user_name(uid: u32) -> String {
    static NAMES: LazyLock<Cache<u32, String>> = LazyLock::new(Cache::default);
    NAMES
        .get(&uid, |uid| database(|buffer| user_by_id(*uid, buffer)))
        .unwrap_or_else(|| uid.to_string())
}

/// The name of a group, its number where it has none.
#[must_use]
pub fn group_name(gid: u32) -> String {
    static NAMES: LazyLock<Cache<u32, String>> = LazyLock::new(Cache::default);
    NAMES
        .get(&gid, |gid| database(|buffer| group_by_id(*gid, buffer)))
        .unwrap_or_else(|| gid.to_string())
}

/// The user of that name, or of that number.
#[must_use]
pub fn user_id(name: &str) -> Option<u32> {
    static IDS: LazyLock<Cache<String, u32>> = LazyLock::new(Cache::default);
    let look_up = |name: &String| {
        let name = CString::new(name.as_bytes()).ok()?;
        database(|buffer| user_by_name(&name, buffer))
    };
    IDS.get(&name.to_owned(), look_up).or_else(|| name.parse().ok())
}

/// The group of that name, or of that number.
#[must_use]
pub fn group_id(name: &str) -> Option<u32> {
    static IDS: LazyLock<Cache<String, u32>> = LazyLock::new(Cache::default);
    let look_up = |name: &String| {
        let name = CString::new(name.as_bytes()).ok()?;
        database(|buffer| group_by_name(&name, buffer))
    };
    IDS.get(&name.to_owned(), look_up).or_else(|| name.parse().ok())
}

/// Answers of the user database, which may be a server far away. Only what was found is kept.
struct Cache<K, V>(Mutex<HashMap<K, V>>);

/// How many names a cache holds before it starts anew.
const CACHED_NAMES: usize = 1024;

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    fn get(&self, key: &K, look_up: impl FnOnce(&K) -> Option<V>) -> Option<V> {
        let mut known = self.0.lock().expect("no holder panics");
        if let Some(value) = known.get(key) {
            return Some(value.clone());
        }
        let value = look_up(key)?;
        if known.len() >= CACHED_NAMES {
            known.clear();
        }
        known.insert(key.clone(), value.clone());
        Some(value)
    }
}

/// What one look-up in the user database says.
enum Lookup<T> {
    Found(T),
    None,
    BufferTooSmall,
}

/// The longest entry of the user database that we read: a group may list many members.
const MAX_DATABASE_ENTRY: usize = 1 << 20;

fn database<T>(mut look_up: impl FnMut(&mut [libc::c_char]) -> Lookup<T>) -> Option<T> {
    let mut buffer = vec![0; 1024];
    loop {
        match look_up(&mut buffer) {
            Lookup::Found(value) => return Some(value),
            Lookup::BufferTooSmall if buffer.len() < MAX_DATABASE_ENTRY => {
                buffer.resize(buffer.len() * 4, 0);
            }
            Lookup::None | Lookup::BufferTooSmall => return None,
        }
    }
}

/// Defines one look-up: the libc function, its record, how the key is passed and the field wanted.
macro_rules! look_up {
    ($name:ident, $call:ident, $record:ty, $key:ty, $pass:expr, $value:ty, $field:expr) => {
        #[expect(unsafe_code, reason = "the user database is only to be had through libc")]
        fn $name(key: $key, buffer: &mut [libc::c_char]) -> Lookup<$value> {
            // SAFETY: the record is plain numbers and pointers, for which zero is a value.
            let mut record: $record = unsafe { std::mem::zeroed() };
            let mut found = std::ptr::null_mut();
            // SAFETY: all pointers outlive the call, and the length is the buffer's.
            let answer = unsafe {
                libc::$call(
                    $pass(key),
                    &raw mut record,
                    buffer.as_mut_ptr(),
                    buffer.len(),
                    &raw mut found,
                )
            };
            match answer {
                libc::ERANGE => Lookup::BufferTooSmall,
                0 if !found.is_null() => Lookup::Found($field(&record)),
                _ => Lookup::None,
            }
        }
    };
}

look_up!(user_by_id, getpwuid_r, libc::passwd, u32, |id| id, String, |r: &libc::passwd| text(
    r.pw_name
));
look_up!(group_by_id, getgrgid_r, libc::group, u32, |id| id, String, |r: &libc::group| text(
    r.gr_name
));
look_up!(user_by_name, getpwnam_r, libc::passwd, &CStr, CStr::as_ptr, u32, |r: &libc::passwd| r
    .pw_uid);
look_up!(group_by_name, getgrnam_r, libc::group, &CStr, CStr::as_ptr, u32, |r: &libc::group| r
    .gr_gid);

#[expect(unsafe_code, reason = "the user database answers with C strings")]
fn text(name: *const libc::c_char) -> String {
    // SAFETY: called on a field of a record that the database has just filled, whose string lies in
    // the caller's buffer and ends with NUL.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_lease_is_refused_while_somebody_writes_and_lost_when_somebody_starts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"half").unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(ReadLease::take(&reader).unwrap_err(), LeaseError::Busy);

        drop(writer);
        let lease = ReadLease::take(&reader).unwrap();
        assert!(lease.still_held());

        // Without waiting for our release, so that the test needs no second thread.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let second = rustix::fs::open(&path, flags, Mode::empty());
        assert_eq!(second.unwrap_err(), Errno::AGAIN);
        assert!(!lease.still_held());
        drop(lease);
        OpenOptions::new().append(true).open(&path).unwrap();
    }

    #[test]
    fn nothing_is_opened_through_a_link_either_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in/deep")).unwrap();
        std::fs::write(dir.path().join("in/deep/file"), b"x").unwrap();
        symlink("/etc", dir.path().join("in/out")).unwrap();
        let root = rustix::fs::open(dir.path().join("in"), OFlags::PATH, Mode::empty()).unwrap();
        let ways: [fn(&OwnedFd, &Path) -> bool; 2] = [
            |root, path| openat2(root, path, OFlags::NOFOLLOW, Mode::empty()).is_ok(),
            |root, path| open_by_steps(root, path, OFlags::NOFOLLOW, Mode::empty()).is_ok(),
        ];
        for opens in ways {
            for good in ["deep/file", "deep", "."] {
                assert!(opens(&root, Path::new(good)), "{good}");
            }
            for bad in ["out", "out/passwd", "../in", "/etc", "deep/../../in", "none"] {
                assert!(!opens(&root, Path::new(bad)), "{bad}");
            }
        }
    }

    #[test]
    fn users_and_groups_are_known_by_name_and_by_number() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_id("root"), Some(0));
        assert_eq!(group_id(&group_name(0)), Some(0));
        assert_eq!(user_name(4_000_000_000), "4000000000");
        assert_eq!(user_id("4000000000"), Some(4_000_000_000));
        assert_eq!(user_id("no such user"), None);
    }

    #[test]
    fn a_copy_has_all_bytes_wherever_the_source_stood() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::write(&from, vec![7; 300_000]).unwrap();
        let mut source = File::open(&from).unwrap();
        source.seek(io::SeekFrom::End(0)).unwrap();
        let to = File::create(dir.path().join("to")).unwrap();
        assert_eq!(copy(&source, &to).unwrap(), 300_000);
        assert_eq!(std::fs::read(dir.path().join("to")).unwrap(), vec![7; 300_000]);
        assert!(file_system(&to).unwrap().name != "vfat");
        assert!(space(dir.path()).unwrap().total > 0);
    }
}

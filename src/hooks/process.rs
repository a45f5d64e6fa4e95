//! One child process and all that it starts, under bounds of time and output.
//!
//! The child leads a process group of its own. One thread waits for its end, reads what it prints
//! and minds the clock, in one `poll`. Past the time-out, or told to stop, the whole group gets
//! SIGTERM and, after a grace, SIGKILL. What the child leaves running when it ends by itself is
//! left alone: starting a server is a hook's good right.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::fd::{AsFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// How soon a stop flag is noticed. An atomic flag wakes nobody, and a hook's run is rare.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Reads of a pipe in one go; with `CHUNK` more than a pipe holds (64 KiB), and an end all the same.
const READS: usize = 16;
const CHUNK: usize = 8 * 1024;

/// The bounds of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a hook may take.
    pub timeout: Duration,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes kept of its output and of its error output, each; more is read and dropped.
    pub output: usize,
}

impl Default for Limits {
    /// Five minutes: restarting an application server takes one or two.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), grace: Duration::from_secs(5), output: 64 * 1024 }
    }
}

/// How a run ended.
#[derive(Debug)]
pub(super) enum Ending {
    Exited(ExitStatus),
    TimedOut,
    Stopped,
}

/// What was kept of one output.
#[derive(Debug, Default)]
pub(super) struct Captured {
    pub(super) bytes: Vec<u8>,
    /// There was more.
    pub(super) truncated: bool,
}

/// A run that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) ending: Ending,
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
}

/// Runs `command` to its end, or to ours.
///
/// # Errors
/// When it cannot be started or watched; then nothing of it runs any more.
pub(super) fn run(
    mut command: Command,
    limits: &Limits,
    stop: &AtomicBool,
) -> io::Result<Finished> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let mut watch = match Watch::over(&mut child, limits) {
        Ok(watch) => watch,
        Err(error) => {
            // Unreaped, the child keeps its number, which is the group's, from being used again.
            signal_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?;
            return Err(error);
        }
    };
    let cut_short = watch.until_over(stop);
    if !matches!(cut_short, Ok(None)) {
        signal_group(watch.group, Signal::KILL);
        // A process that even this does not end, stuck in the kernel, is left behind.
        watch.until_quiet(Watch::is_running)?;
    }
    watch.read();
    let status = child.try_wait()?;
    let ending = match (cut_short?, status) {
        (None, Some(status)) => Ending::Exited(status),
        (None, None) => return Err(io::Error::other("it ended without an exit status")),
        (Some(why), _) => why,
    };
    let [stdout, stderr] = watch.pipes.map(|pipe| pipe.kept);
    Ok(Finished { ending, stdout, stderr })
}

fn signal_group(group: Pid, signal: Signal) {
    // The only failure is that nobody is left in it.
    let _ = kill_process_group(group, signal);
}

/// A running child.
struct Watch {
    group: Pid,
    /// Readable once the child has ended; none from then on.
    running: Option<OwnedFd>,
    pipes: [Pipe; 2],
    limits: Limits,
}

impl Watch {
    fn over(child: &mut Child, limits: &Limits) -> io::Result<Self> {
        let group = Pid::from_child(child);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        Ok(Self {
            group,
            running: Some(pidfd_open(group, PidfdFlags::empty())?),
            pipes: [Pipe::new(stdout, limits.output)?, Pipe::new(stderr, limits.output)?],
            limits: *limits,
        })
    }

    /// Waits until the child has ended by itself (none), or until it must be killed: then why.
    fn until_over(&mut self, stop: &AtomicBool) -> io::Result<Option<Ending>> {
        let deadline = Instant::now() + self.limits.timeout;
        while self.is_running() {
            let why = if stop.load(Ordering::Relaxed) {
                Ending::Stopped
            } else if Instant::now() >= deadline {
                Ending::TimedOut
            } else {
                self.poll(deadline.min(Instant::now() + STOP_INTERVAL))?;
                continue;
            };
            self.ask_to_end()?;
            return Ok(Some(why));
        }
        Ok(None)
    }

    /// Gives the whole group its grace. As long as an output is open, somebody of it is still there.
    fn ask_to_end(&mut self) -> io::Result<()> {
        signal_group(self.group, Signal::TERM);
        // One that is stopped, by reading from a terminal say, would not hear it.
        signal_group(self.group, Signal::CONT);
        self.until_quiet(|watch| watch.is_running() || watch.pipes.iter().any(Pipe::is_open))
    }

    /// Waits until nothing is `busy` any more, at most for the grace.
    fn until_quiet(&mut self, busy: impl Fn(&Self) -> bool) -> io::Result<()> {
        let until = Instant::now() + self.limits.grace;
        while busy(self) && Instant::now() < until {
            self.poll(until)?;
        }
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits until the child ends, prints or closes something, or until then; reads what there is.
    fn poll(&mut self, until: Instant) -> io::Result<()> {
        let running = self.running.iter().map(AsFd::as_fd);
        let pipes = self.pipes.iter().filter_map(|pipe| pipe.from.as_ref()).map(AsFd::as_fd);
        let mut fds: Vec<_> =
            running.chain(pipes).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timespec(until.saturating_duration_since(Instant::now())))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = self.is_running() && !fds[0].revents().is_empty();
        self.read();
        if ended {
            self.running = None;
        }
        Ok(())
    }

    fn read(&mut self) {
        self.pipes.iter_mut().for_each(Pipe::read);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Our end of one of the child's outputs.
struct Pipe {
    from: Option<File>,
    kept: Captured,
    bound: usize,
}

impl Pipe {
    fn new(from: Option<OwnedFd>, bound: usize) -> io::Result<Self> {
        if let Some(from) = &from {
            rustix::io::ioctl_fionbio(from, true)?;
        }
        Ok(Self { from: from.map(File::from), kept: Captured::default(), bound })
    }

    fn is_open(&self) -> bool {
        self.from.is_some()
    }

    /// Reads what is there, keeps what the bound allows, and lets go of it at its end.
    fn read(&mut self) {
        let mut chunk = [0; CHUNK];
        for _ in 0..READS {
            let Some(from) = &mut self.from else { return };
            match from.read(&mut chunk) {
                Ok(0) => self.from = None,
                Ok(read) => self.keep(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.from = None,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = (self.bound - self.kept.bytes.len()).min(bytes.len());
        self.kept.bytes.extend_from_slice(&bytes[..room]);
        self.kept.truncated |= room < bytes.len();
    }
}

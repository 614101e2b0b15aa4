// SPDX-License-Identifier: MPL-2.0

//! `commandsrc`: what a program writes to its standard output, such as a camera's own tool. The
//! program runs while the element is in PAUSED or PLAYING, so that a cold valve starts and ends it.
//!
//! It is an element of the launcher's process alone; elsewhere a pipe and `fdsrc` take its place.

use std::{
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, ChildStdout, Command, Stdio},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gst::{prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{base_src::CreateSuccess, prelude::*},
};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};

pub const NAME: &str = "commandsrc";
/// What is read at once.
const BLOCK: usize = 64 * 1024;
/// A program that is asked to end has this long.
const END_DEADLINE: Duration = Duration::from_secs(1);

mod imp {
    use super::*;

    #[derive(Default)]
    pub struct CommandSrc {
        command: Mutex<String>,
        run: Mutex<Option<Run>>,
        /// What is written here is read by the streaming thread, which then returns.
        unlock: Mutex<Option<UnixStream>>,
    }

    /// A program that runs; ended when dropped.
    struct Run {
        child: Child,
        output: ChildStdout,
        unlocked: UnixStream,
    }

    impl Run {
        fn start(command: &str, unlocked: UnixStream) -> io::Result<Self> {
            let mut child = Command::new("/bin/sh")
                .arg("-c")
                .arg(command)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                // Whatever it starts ends with it.
                .process_group(0)
                .spawn()?;
            let output = child.stdout.take().expect("it is piped");
            Ok(Run {
                child,
                output,
                unlocked,
            })
        }

        fn signal(&self, signal: Signal) {
            // It may have ended.
            let _ = kill_process_group(Pid::from_child(&self.child), signal);
        }

        /// How it ended, if it has within `patience`. Its number stays its own until it is dropped.
        fn ended(&self, patience: Duration) -> Option<WaitIdStatus> {
            let deadline = Instant::now() + patience;
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            loop {
                let asked = waitid(WaitId::Pid(Pid::from_child(&self.child)), options);
                if let Ok(Some(status)) = asked {
                    return Some(status);
                }
                if Instant::now() >= deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }

        /// Waits for the program to write; None: the thread is to return.
        fn read(&mut self, block: &mut [u8]) -> io::Result<Option<usize>> {
            loop {
                let wait = |fd: i32| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                };
                let waits = [self.unlocked.as_raw_fd(), self.output.as_raw_fd()];
                let mut waits = waits.map(wait);
                // SAFETY: two of them, which live until it returns.
                let polled = unsafe { libc::poll(waits.as_mut_ptr(), 2, -1) };
                if polled < 0 {
                    let err = io::Error::last_os_error();
                    if err.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(err);
                }
                if waits[0].revents != 0 {
                    return Ok(None);
                }
                match self.output.read(block) {
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    read => return read.map(Some),
                }
            }
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            self.signal(Signal::TERM);
            // By then it is killed, with whatever it has started and left.
            self.ended(END_DEADLINE);
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }

    #[glib::object_subclass]
    impl ObjectSubclass for CommandSrc {
        const NAME: &'static str = "GstCommandSrc";
        type Type = super::CommandSrc;
        type ParentType = gst_base::PushSrc;
    }

    impl ObjectImpl for CommandSrc {
        fn properties() -> &'static [glib::ParamSpec] {
            static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
                let blurb = "Command line for /bin/sh; what it writes to its standard output is the stream. The program runs while the element is in PAUSED or PLAYING";
                vec![
                    glib::ParamSpecString::builder("command")
                        .nick("Command")
                        .blurb(blurb)
                        .mutable_ready()
                        .build(),
                ]
            });
            &PROPERTIES
        }

        fn set_property(&self, _: usize, value: &glib::Value, _: &glib::ParamSpec) {
            let command = value.get::<Option<String>>().ok().flatten();
            *lock(&self.command) = command.unwrap_or_default();
        }

        fn property(&self, _: usize, _: &glib::ParamSpec) -> glib::Value {
            lock(&self.command).to_value()
        }

        fn constructed(&self) {
            self.parent_constructed();
            let source = self.obj();
            source.set_live(true);
            source.set_format(gst::Format::Time);
            source.set_do_timestamp(true);
        }
    }

    impl GstObjectImpl for CommandSrc {}

    impl ElementImpl for CommandSrc {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new(
                    "Command source",
                    "Source",
                    "Reads what a program writes to its standard output",
                    "Droidrelay maintainers",
                )
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let (direction, presence) = (gst::PadDirection::Src, gst::PadPresence::Always);
                let caps = gst::Caps::new_any();
                let template = gst::PadTemplate::new("src", direction, presence, &caps);
                vec![template.expect("a template")]
            });
            &TEMPLATES
        }
    }

    impl BaseSrcImpl for CommandSrc {
        fn start(&self) -> Result<(), gst::ErrorMessage> {
            let command = lock(&self.command).clone();
            if command.trim().is_empty() {
                return Err(gst::error_msg!(
                    gst::ResourceError::Settings,
                    ("no command: set command=\"rpicam-vid … -o -\"")
                ));
            }
            let failed = |err: io::Error| {
                gst::error_msg!(
                    gst::ResourceError::OpenRead,
                    ("cannot start the command: {err}")
                )
            };
            let (unlock, unlocked) = UnixStream::pair().map_err(failed)?;
            // Whoever unlocks twice need not wait.
            unlock.set_nonblocking(true).map_err(failed)?;
            unlocked.set_nonblocking(true).map_err(failed)?;
            let run = Run::start(&command, unlocked).map_err(failed)?;
            *lock(&self.run) = Some(run);
            *lock(&self.unlock) = Some(unlock);
            Ok(())
        }

        fn stop(&self) -> Result<(), gst::ErrorMessage> {
            let run = lock(&self.run).take();
            drop(run);
            *lock(&self.unlock) = None;
            Ok(())
        }

        fn is_seekable(&self) -> bool {
            false
        }

        fn unlock(&self) -> Result<(), gst::ErrorMessage> {
            if let Some(mut unlock) = lock(&self.unlock).as_ref() {
                // Where it is full, it has been written to.
                let _ = unlock.write(&[0]);
            }
            Ok(())
        }

        fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
            if let Some(run) = &mut *lock(&self.run) {
                let mut written = [0; 64];
                while run
                    .unlocked
                    .read(&mut written)
                    .is_ok_and(|length| length > 0)
                {}
            }
            Ok(())
        }
    }

    impl PushSrcImpl for CommandSrc {
        fn create(&self, _: Option<&mut gst::BufferRef>) -> Result<CreateSuccess, gst::FlowError> {
            // Not held while the program is waited for; nobody ends it before this has returned.
            let mut run = lock(&self.run).take().ok_or(gst::FlowError::Flushing)?;
            let mut block = vec![0; BLOCK];
            let read = run.read(&mut block);
            let status = match read {
                Ok(Some(0)) => run.ended(END_DEADLINE),
                _ => None,
            };
            *lock(&self.run) = Some(run);
            match read {
                Ok(None) => Err(gst::FlowError::Flushing),
                Ok(Some(0)) => {
                    let ended = match status.map(|status| (status.exit_status(), status)) {
                        None => "has closed its output".to_owned(),
                        Some((Some(code), _)) => format!("has ended with code {code}"),
                        Some((None, status)) => {
                            let signal = status.terminating_signal().unwrap_or_default();
                            format!("was ended by signal {signal}")
                        }
                    };
                    // Not the command itself: it may hold a secret.
                    gst::element_imp_error!(
                        self,
                        gst::ResourceError::Read,
                        ("the command {ended}; what it has said is in the log")
                    );
                    Err(gst::FlowError::Error)
                }
                Ok(Some(length)) => {
                    block.truncate(length);
                    let buffer = gst::Buffer::from_mut_slice(block);
                    Ok(CreateSuccess::NewBuffer(buffer))
                }
                Err(err) => {
                    gst::element_imp_error!(
                        self,
                        gst::ResourceError::Read,
                        ("cannot read what the command writes: {err}")
                    );
                    Err(gst::FlowError::Error)
                }
            }
        }
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

glib::wrapper! {
    pub struct CommandSrc(ObjectSubclass<imp::CommandSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object;
}

/// Makes the element known in this process.
pub fn register() -> Result<(), glib::BoolError> {
    gst::Element::register(None, NAME, gst::Rank::NONE, CommandSrc::static_type())
}

// SPDX-License-Identifier: MPL-2.0

//! A plugin for tests: `scriptedsrc`, a live camera that fails as it is told.
//!
//! `script` holds what each start of it does, separated by `|`, the last for all that follow:
//! a number of frames, then one of
//! `play` (for ever), `eos`, `error`, `panic`, `segv`, `freeze` (delivers nothing more, but lets
//! itself be stopped), `hang` (lets itself not even be stopped), `gone` (does not open),
//! `slow` (hangs while it opens). Starts are counted in the file `counter`, across processes.
//!
//! With `device` it has that open while it runs, as v4l2src has: also for programs that the process
//! runs. `closes` says when that ends: `stopped`, `drained` (as v4l2src of GStreamer 1.22: stopped
//! with GST_V4L2_FORCE_DRAIN in the environment, and else never), `never`.

use std::{
    env, fs,
    io::Write,
    path::PathBuf,
    sync::{Condvar, Mutex},
    thread,
    time::Duration,
};

use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};

const WIDTH: usize = 64;
const HEIGHT: usize = 48;
const FRAME: Duration = Duration::from_millis(20);

mod imp {
    use super::*;

    #[derive(Default)]
    struct Run {
        frames: u64,
        end: String,
        stopped: bool,
    }

    #[derive(Default)]
    pub struct ScriptedSrc {
        script: Mutex<String>,
        counter: Mutex<PathBuf>,
        device: Mutex<PathBuf>,
        closes: Mutex<String>,
        open: Mutex<Option<fs::File>>,
        run: Mutex<Run>,
        wake: Condvar,
    }

    impl ScriptedSrc {
        /// What this start is to do.
        fn next_run(&self) -> Run {
            let counter = self.counter.lock().unwrap().clone();
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&counter)
                .expect("counter names a file");
            let before = file.metadata().unwrap().len() as usize;
            file.write_all(b".").unwrap();
            let script = self.script.lock().unwrap().clone();
            let runs: Vec<&str> = script.split('|').collect();
            let mut words = runs[before.min(runs.len() - 1)].split_whitespace();
            let mut run = Run::default();
            for word in &mut words {
                match word.parse() {
                    Ok(frames) => run.frames = frames,
                    Err(_) => run.end = word.to_owned(),
                }
            }
            run
        }

        /// Waits like a camera for its next frame; false when it is stopped meanwhile.
        fn pause(&self, pause: Option<Duration>) -> bool {
            let run = self.run.lock().unwrap();
            let going = |run: &mut Run| !run.stopped;
            let run = match pause {
                Some(pause) => self.wake.wait_timeout_while(run, pause, going).unwrap().0,
                None => self.wake.wait_while(run, going).unwrap(),
            };
            !run.stopped
        }
    }

    #[glib::object_subclass]
    impl ObjectSubclass for ScriptedSrc {
        const NAME: &'static str = "ScriptedSrc";
        type Type = super::ScriptedSrc;
        type ParentType = gst_base::PushSrc;
    }

    impl ObjectImpl for ScriptedSrc {
        fn constructed(&self) {
            self.parent_constructed();
            self.obj().set_live(true);
            self.obj().set_format(gst::Format::Time);
            self.obj().set_do_timestamp(true);
        }

        fn properties() -> &'static [glib::ParamSpec] {
            static PROPERTIES: std::sync::OnceLock<Vec<glib::ParamSpec>> =
                std::sync::OnceLock::new();
            PROPERTIES.get_or_init(|| {
                ["script", "counter", "device", "closes"]
                    .map(|name| glib::ParamSpecString::builder(name).readwrite().build())
                    .into()
            })
        }

        fn property(&self, _: usize, spec: &glib::ParamSpec) -> glib::Value {
            match spec.name() {
                "script" => self.script.lock().unwrap().to_value(),
                "device" => self.device.lock().unwrap().to_value(),
                "closes" => self.closes.lock().unwrap().to_value(),
                _ => self.counter.lock().unwrap().to_value(),
            }
        }

        fn set_property(&self, _: usize, value: &glib::Value, spec: &glib::ParamSpec) {
            let text = value.get::<String>().unwrap();
            match spec.name() {
                "script" => *self.script.lock().unwrap() = text,
                "device" => *self.device.lock().unwrap() = text.into(),
                "closes" => *self.closes.lock().unwrap() = text,
                _ => *self.counter.lock().unwrap() = text.into(),
            }
        }
    }

    impl GstObjectImpl for ScriptedSrc {}

    impl ElementImpl for ScriptedSrc {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: std::sync::OnceLock<gst::subclass::ElementMetadata> =
                std::sync::OnceLock::new();
            Some(METADATA.get_or_init(|| {
                gst::subclass::ElementMetadata::new(
                    "Scripted source",
                    "Source/Video",
                    "Fails as it is told",
                    "tests",
                )
            }))
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: std::sync::OnceLock<Vec<gst::PadTemplate>> =
                std::sync::OnceLock::new();
            TEMPLATES.get_or_init(|| {
                let caps = gst::Caps::new_empty_simple("video/x-raw");
                vec![
                    gst::PadTemplate::new(
                        "src",
                        gst::PadDirection::Src,
                        gst::PadPresence::Always,
                        &caps,
                    )
                    .unwrap(),
                ]
            })
        }
    }

    impl BaseSrcImpl for ScriptedSrc {
        /// As a camera: closed it may have anything, open it has what it has.
        fn caps(&self, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
            let caps = match self.obj().current_state() {
                gst::State::Null => gst::Caps::new_empty_simple("video/x-raw"),
                _ => gst::Caps::builder("video/x-raw")
                    .field("format", "I420")
                    .field("width", WIDTH as i32)
                    .field("height", HEIGHT as i32)
                    .field("framerate", gst::Fraction::new(50, 1))
                    .build(),
            };
            Some(match filter {
                Some(filter) => filter.intersect_with_mode(&caps, gst::CapsIntersectMode::First),
                None => caps,
            })
        }

        fn start(&self) -> Result<(), gst::ErrorMessage> {
            let run = self.next_run();
            match run.end.as_str() {
                "gone" => {
                    return Err(gst::error_msg!(
                        gst::ResourceError::NotFound,
                        ["the camera is gone"]
                    ));
                }
                "slow" => loop {
                    thread::park();
                },
                _ => {}
            }
            *self.run.lock().unwrap() = run;
            let device = self.device.lock().unwrap().clone();
            if !device.as_os_str().is_empty() {
                let file = fs::File::open(device).expect("a device");
                let kept = rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty());
                kept.expect("a flag");
                *self.open.lock().unwrap() = Some(file);
            }
            Ok(())
        }

        fn stop(&self) -> Result<(), gst::ErrorMessage> {
            let open = self.open.lock().unwrap().take();
            let stays = match self.closes.lock().unwrap().as_str() {
                "never" => true,
                "drained" => env::var_os("GST_V4L2_FORCE_DRAIN").is_none(),
                _ => false,
            };
            if stays {
                std::mem::forget(open);
            }
            Ok(())
        }

        fn is_seekable(&self) -> bool {
            false
        }

        fn unlock(&self) -> Result<(), gst::ErrorMessage> {
            self.run.lock().unwrap().stopped = true;
            self.wake.notify_all();
            Ok(())
        }

        fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
            self.run.lock().unwrap().stopped = false;
            Ok(())
        }
    }

    impl PushSrcImpl for ScriptedSrc {
        fn create(
            &self,
            _: Option<&mut gst::BufferRef>,
        ) -> Result<gst_base::subclass::base_src::CreateSuccess, gst::FlowError> {
            if !self.pause(Some(FRAME)) {
                return Err(gst::FlowError::Flushing);
            }
            let end = {
                let mut run = self.run.lock().unwrap();
                if run.frames > 0 || run.end == "play" {
                    run.frames = run.frames.saturating_sub(1);
                    let frame = gst::Buffer::from_slice(vec![128; WIDTH * HEIGHT * 3 / 2]);
                    return Ok(gst_base::subclass::base_src::CreateSuccess::NewBuffer(
                        frame,
                    ));
                }
                run.end.clone()
            };
            match end.as_str() {
                "eos" => Err(gst::FlowError::Eos),
                "error" => {
                    gst::element_imp_error!(
                        self,
                        gst::ResourceError::Read,
                        ["the camera was unplugged"]
                    );
                    Err(gst::FlowError::Error)
                }
                "panic" => panic!("as the script says"),
                "segv" => {
                    // SAFETY: this is what it is for.
                    unsafe { std::ptr::null_mut::<u8>().write_volatile(0) }
                    unreachable!("a null pointer was written to")
                }
                "freeze" => {
                    self.pause(None);
                    Err(gst::FlowError::Flushing)
                }
                "hang" => loop {
                    thread::park();
                },
                other => panic!("the script has no {other:?}"),
            }
        }
    }
}

glib::wrapper! {
    pub struct ScriptedSrc(ObjectSubclass<imp::ScriptedSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object;
}

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "scriptedsrc",
        gst::Rank::NONE,
        ScriptedSrc::static_type(),
    )
}

gst::plugin_define!(
    scripted,
    "A camera that fails as it is told",
    plugin_init,
    "1.0",
    "MPL",
    "scripted",
    "scripted",
    "https://github.com/droidrelay/droidrelay",
    "2026-01-01"
);

// SPDX-License-Identifier: MPL-2.0

//! The robot's line inside an application, which opens and closes it itself besides.
//!
//! ```text
//! cargo run --example application -- 'videotestsrc is-live=true ! ... ! mqttvalve name=valve ... ! ...'
//! ```
//!
//! The line is what gst-launch-1.0 takes; its mqttvalve is called valve. What valve and sink say
//! is printed. What is typed is done:
//!
//! ```text
//! start [ID [SECONDS]]    open for ID, for so long (else until stop)
//! stop [ID]               close, or end the lease of ID
//! keyframe                ask the encoder for a key frame now
//! quit                    as Ctrl-C
//! ```
//!
//! It needs no more of this project than the plugin, installed or in GST_PLUGIN_PATH.

use std::{
    env,
    error::Error,
    io::{self, BufRead},
    os::fd::AsRawFd,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use glib::ControlFlow;
use gst::prelude::*;

static FAILED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let line: Vec<String> = env::args().skip(1).collect();
    gst::init()?;
    let pipeline = gst::parse::launch(&line.join(" "))?
        .downcast::<gst::Pipeline>()
        .map_err(|_| "the line is one element alone: give the whole line")?;
    let valve = pipeline
        .by_name("valve")
        .ok_or("the line has no mqttvalve name=valve")?;

    // Comes on the thread that opened or closed it (MQTT's, for one), which must not wait for
    // anything here: what takes long belongs into another one.
    valve.connect_notify(Some("drop"), |valve, _| {
        let closed = valve.property::<bool>("drop");
        println!("valve: {}", if closed { "closed" } else { "open" });
    });

    let main_loop = glib::MainLoop::new(None, false);
    let bus = pipeline.bus().expect("every pipeline has a bus");
    let _watch = bus.add_watch_local({
        let (main_loop, pipeline) = (main_loop.clone(), pipeline.downgrade());
        move |_, message| {
            use gst::MessageView;
            match message.view() {
                MessageView::Element(element) => {
                    if let Some(text) = element.structure().and_then(said) {
                        println!("{text}");
                    }
                }
                MessageView::Latency(_) => {
                    // Where it cannot be asked for now, another message will come.
                    let _ = pipeline.upgrade().map(|all| all.recalculate_latency());
                }
                MessageView::Error(error) => {
                    // `droidrelay run` would begin anew; here it is the end.
                    let source = error.src().map(|source| source.name());
                    eprintln!("{}: {}", source.unwrap_or_default(), error.error());
                    FAILED.store(true, Ordering::Relaxed);
                    main_loop.quit();
                }
                MessageView::Eos(_) => main_loop.quit(),
                _ => {}
            }
            ControlFlow::Continue
        }
    })?;

    for signal in [libc::SIGINT, libc::SIGTERM] {
        let main_loop = main_loop.clone();
        glib_unix::unix_signal_add_local(signal, move || {
            main_loop.quit();
            ControlFlow::Continue
        });
    }
    let condition = glib::IOCondition::IN | glib::IOCondition::HUP;
    glib_unix::unix_fd_add_local(io::stdin().as_raw_fd(), condition, {
        let main_loop = main_loop.clone();
        let mut pending = String::new();
        move |_, _| {
            if !read(&mut pending) {
                return ControlFlow::Break;
            }
            while let Some((line, rest)) = pending.split_once('\n') {
                if line.trim() == "quit" {
                    main_loop.quit();
                } else {
                    obey(&valve, line);
                }
                pending = rest.to_owned();
            }
            ControlFlow::Continue
        }
    });

    // A state change that fails posts an error, which ends the loop.
    let _ = pipeline.set_state(gst::State::Playing);
    main_loop.run();
    // The robot says offline, and the stream is unpublished, before this returns.
    pipeline.set_state(gst::State::Null)?;
    Ok(match FAILED.load(Ordering::Relaxed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The element messages of valve and sink, for people.
fn said(fields: &gst::StructureRef) -> Option<String> {
    let name = fields.name();
    let state = fields.get::<&str>("state").ok()?;
    match name.as_str() {
        "mqttvalve-state" => {
            let viewers = fields.get::<u32>("viewers").ok()?;
            Some(format!("{name}: {state}, viewers: {viewers}"))
        }
        "rtmpauthsink-state" => {
            let reason = fields.get::<Option<&str>>("reason").ok()?;
            let reason = reason.map_or(String::new(), |reason| format!(", {reason}"));
            Some(format!("{name}: {state}{reason}"))
        }
        _ => None,
    }
}

/// Adds what has been typed; false when nothing more will be.
fn read(pending: &mut String) -> bool {
    let mut stdin = io::stdin().lock();
    let Ok(bytes) = stdin.fill_buf() else {
        return false;
    };
    let length = bytes.len();
    pending.push_str(&String::from_utf8_lossy(bytes));
    stdin.consume(length);
    length > 0
}

fn obey(valve: &gst::Element, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["start", ref rest @ ..] if rest.len() <= 2 => {
            let id = rest.first().copied();
            let Ok(lease) = rest.get(1).unwrap_or(&"0").parse::<u32>() else {
                println!("{} are no seconds", rest[1]);
                return;
            };
            let open = valve.emit_by_name::<bool>("start", &[&id, &lease]);
            println!("start: {}", if open { "open" } else { "closed" });
        }
        ["stop", ref rest @ ..] if rest.len() <= 1 => {
            let id = rest.first().copied();
            let closed = valve.emit_by_name::<bool>("stop", &[&id]);
            let text = if closed {
                "closed"
            } else {
                "still open for others"
            };
            println!("stop: {text}");
        }
        ["keyframe"] => {
            let asked = valve.emit_by_name::<bool>("keyframe", &[]);
            let text = if asked {
                "asked for"
            } else {
                "the valve is closed"
            };
            println!("keyframe: {text}");
        }
        [] => {}
        _ => println!("type: start [ID [SECONDS]], stop [ID], keyframe, quit"),
    }
}

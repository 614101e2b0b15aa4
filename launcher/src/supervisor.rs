//! Keeps the pipeline running, and ends it when asked.
//!
//! Everything that happens comes as an [`Event`] through one queue to one function on the
//! main loop's thread; whatever may block is a [`Job`] on the [`Changer`]'s thread, with a
//! deadline here. A failure climbs a ladder: the same pipeline again after a back-off,
//! then a new pipeline, then the end of the process, for systemd to start it anew.

use std::{
    cell::Cell,
    collections::VecDeque,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use droidrelay_wire::{backoff::jitter, Backoff};
use gst::prelude::*;
use rustix::process::Signal;

use crate::{
    changer::{Changer, Job, Outcome},
    cli::exit,
    launchfile::LaunchFile,
    log::Log,
    notify::Notify,
    pipeline,
};

/// Every so many failures in a row the pipeline is built anew.
const REBUILD_AFTER: u32 = 3;
/// Playing this long makes earlier failures forgotten.
const STABLE: Duration = Duration::from_secs(60);
/// A restart after EOS waits only if the pipeline played shorter than this.
const SHORTEST_PLAY: Duration = Duration::from_secs(1);
/// How long a change to a running state may block; opening a camera can take seconds.
const UP_DEADLINE: Duration = Duration::from_secs(20);
const DOWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long the end waits for EOS to pass through the pipeline.
const EOS_DEADLINE: Duration = Duration::from_secs(1);
/// How long the end takes at most, EOS included.
const END_DEADLINE: Duration = Duration::from_millis(1700);

pub struct Policy {
    pub restart_on_eos: bool,
    /// Exit after this many failures in a row; 0 = never.
    pub give_up_after: u32,
}

enum Event {
    /// A message of the run with this number.
    Message(u64, gst::Message),
    Done(Job, Outcome),
    Due(Timer, u64),
    Signal(Signal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// The running job has hung.
    Job,
    /// The back-off is over.
    Start,
    /// The pipeline has been stable.
    Stable,
    /// EOS has not come through.
    Eos,
    /// The end takes too long.
    End,
}

const TIMERS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Start again after this wait.
    Start(Duration),
    Exit(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Playing,
    /// On the way to NULL.
    Down(Next),
    /// At NULL, until the back-off is over.
    Waiting,
    /// EOS is on its way through the pipeline, then comes the end.
    Finishing,
}

/// How the process ends.
enum End {
    Exit(i32),
    /// With a thread that cannot be waited for.
    Stuck(i32),
}

/// Puts events into the queue and wakes the main loop; clones go to other threads.
#[derive(Clone)]
struct Inbox(mpsc::Sender<Event>);

impl Inbox {
    fn put(&self, event: Event) {
        // Without a supervisor there is nobody to tell.
        let _ = self.0.send(event);
        glib::MainContext::default().wakeup();
    }
}

pub struct Supervisor {
    file: LaunchFile,
    policy: Policy,
    log: Log,
    notify: Notify,
    inbox: Inbox,
    events: mpsc::Receiver<Event>,
    changer: Changer,
    jobs: VecDeque<Job>,
    /// For each timer the number of its last arming; another number has been disarmed.
    timers: [u64; TIMERS],
    armed: u64,
    pipeline: gst::Pipeline,
    watch: Option<gst::bus::BusWatchGuard>,
    /// Counts the starts, so that a message of an earlier run is known as such.
    run: Rc<Cell<u64>>,
    phase: Phase,
    /// PAUSED has been reached or is being reached, PLAYING asked for.
    prerolled: bool,
    live: bool,
    buffering: bool,
    playing_since: Option<Instant>,
    failures: u32,
    backoff: Backoff,
}

impl Supervisor {
    pub fn new(file: LaunchFile, pipeline: gst::Pipeline, policy: Policy) -> Self {
        let (sender, events) = mpsc::channel();
        let inbox = Inbox(sender);
        let done = inbox.clone();
        let log = Log::new(file.mask.clone());
        let mut supervisor = Supervisor {
            file,
            policy,
            notify: Notify::new(log.clone()),
            log,
            inbox,
            events,
            changer: Changer::spawn(move |job, outcome| done.put(Event::Done(job, outcome))),
            jobs: VecDeque::new(),
            timers: [0; TIMERS],
            armed: 0,
            pipeline,
            watch: None,
            run: Rc::default(),
            phase: Phase::Waiting,
            prerolled: false,
            live: false,
            buffering: false,
            playing_since: None,
            failures: 0,
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
        };
        supervisor.watch_bus();
        supervisor
    }

    /// Runs until the end and returns the exit code.
    pub fn run(mut self) -> i32 {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let inbox = self.inbox.clone();
            glib_unix::unix_signal_add_local(signal.as_raw(), move || {
                inbox.put(Event::Signal(signal));
                glib::ControlFlow::Continue
            });
        }
        self.notify.feed_watchdog();
        self.start();
        let context = glib::MainContext::default();
        let end = loop {
            context.iteration(true);
            let mut end = None;
            while let (None, Ok(event)) = (&end, self.events.try_recv()) {
                end = self.handle(event);
            }
            if let Some(end) = end {
                break end;
            }
        };
        match end {
            End::Exit(code) => {
                self.changer.join();
                code
            }
            // Joining would hang, and dropping the pipeline as well.
            End::Stuck(code) => std::process::exit(code),
        }
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Message(run, message) => {
                let current = run == self.run.get();
                self.message(&message, current);
                None
            }
            Event::Done(job, outcome) => self.done(job, outcome),
            Event::Due(timer, number) if self.timers[timer as usize] == number => self.due(timer),
            Event::Due(..) => None,
            Event::Signal(signal) => self.signal(signal),
        }
    }

    fn signal(&mut self, signal: Signal) -> Option<End> {
        if signal == Signal::HUP {
            self.log.info("SIGHUP: nothing to reload, ignored");
            return None;
        }
        if self.ending() {
            self.log.warning("second signal: ended at once");
            return Some(End::Stuck(128 + signal.as_raw()));
        }
        self.log.info("ending: asked by a signal");
        self.notify.stopping();
        self.notify.status("stopping");
        self.arm(Timer::End, END_DEADLINE);
        match self.phase {
            Phase::Starting | Phase::Playing => {
                self.phase = Phase::Finishing;
                self.arm(Timer::Eos, EOS_DEADLINE);
                self.submit(Job::SendEos);
                None
            }
            Phase::Down(_) => {
                self.phase = Phase::Down(Next::Exit(exit::OK));
                None
            }
            Phase::Waiting | Phase::Finishing => Some(End::Exit(exit::OK)),
        }
    }

    fn ending(&self) -> bool {
        self.timers[Timer::End as usize] != 0
    }

    fn message(&mut self, message: &gst::Message, current: bool) {
        use gst::MessageView;
        let source = message
            .src()
            .map(|source| source.name().to_string())
            .unwrap_or_default();
        let is_pipeline = message.src() == Some(self.pipeline.upcast_ref());
        let running = current && matches!(self.phase, Phase::Starting | Phase::Playing);
        match message.view() {
            MessageView::Error(error) => {
                let text = format!("{source}: {}", error.error().message());
                let debug = error.debug().unwrap_or_default();
                self.log.error(&format!("{text} ({debug})"));
                if running {
                    self.fail(&text);
                } else if current && self.phase == Phase::Finishing {
                    self.bring_down(Next::Exit(exit::OK));
                }
            }
            MessageView::Warning(warning) => {
                let debug = warning.debug().unwrap_or_default();
                let text = warning.error();
                self.log
                    .warning(&format!("{source}: {} ({debug})", text.message()));
            }
            MessageView::Eos(_) if running => {
                self.log.info("end of stream");
                let played = self.playing_since.map(|since| since.elapsed());
                let next = if !self.policy.restart_on_eos {
                    Next::Exit(exit::OK)
                } else if played.is_some_and(|played| played >= SHORTEST_PLAY) {
                    Next::Start(Duration::ZERO)
                } else {
                    Next::Start(self.backoff.next(jitter()))
                };
                self.bring_down(next);
            }
            MessageView::Eos(_) if current && self.phase == Phase::Finishing => {
                self.bring_down(Next::Exit(exit::OK));
            }
            MessageView::StateChanged(change)
                if is_pipeline
                    && current
                    && self.phase == Phase::Starting
                    && change.current() == gst::State::Playing =>
            {
                self.phase = Phase::Playing;
                self.playing_since = Some(Instant::now());
                self.arm(Timer::Stable, STABLE);
                self.log.info("playing");
                self.notify.status("playing");
                self.notify.ready();
            }
            MessageView::ClockLost(_) if running => {
                self.log.info("clock lost: choosing a new one");
                self.submit(Job::SetState(gst::State::Paused));
                self.submit(Job::SetState(gst::State::Playing));
            }
            MessageView::Latency(_) if running => self.submit(Job::RecalculateLatency),
            MessageView::RequestState(request) if running => {
                let state = request.requested_state();
                self.log.info(&format!("{source} asks for {state:?}"));
                self.submit(Job::SetState(state));
            }
            MessageView::Buffering(buffering) if running && !self.live => {
                let percent = buffering.percent();
                if percent < 100 && !self.buffering {
                    self.buffering = true;
                    self.submit(Job::SetState(gst::State::Paused));
                } else if percent >= 100 && self.buffering {
                    self.buffering = false;
                    self.submit(Job::SetState(gst::State::Playing));
                }
            }
            MessageView::Element(_) if running => {
                let valve = message
                    .structure()
                    .filter(|structure| structure.name() == "mqttvalve-state");
                if let Some(structure) = valve {
                    let field = |name| structure.get::<Option<String>>(name).ok().flatten();
                    let state = field("state").unwrap_or_default();
                    let cause = field("cause")
                        .map(|cause| format!(" ({cause})"))
                        .unwrap_or_default();
                    self.log.info(&format!("{source}: {state}{cause}"));
                    self.notify.status(&format!("{source}: {state}{cause}"));
                }
            }
            _ => {}
        }
    }

    fn done(&mut self, job: Job, outcome: Outcome) -> Option<End> {
        self.jobs.pop_front();
        self.watch_job();
        match (job, outcome) {
            (Job::SetState(gst::State::Null), outcome) => {
                let Phase::Down(next) = self.phase else {
                    return None;
                };
                if outcome.is_err() {
                    self.log.error("the pipeline does not go to NULL");
                }
                match next {
                    Next::Exit(code) => return Some(End::Exit(code)),
                    Next::Start(wait) => {
                        self.phase = Phase::Waiting;
                        self.arm(Timer::Start, wait);
                    }
                }
            }
            (Job::SetState(_), Ok(success)) => {
                // Asked of PAUSED, a pipeline with live sources answers so; asked of
                // PLAYING, it may not.
                self.live |= success == gst::StateChangeSuccess::NoPreroll;
                if self.phase == Phase::Starting && !std::mem::replace(&mut self.prerolled, true) {
                    self.submit(Job::SetState(gst::State::Playing));
                }
            }
            (Job::SetState(state), Err(_)) => {
                // The reason is on the bus, and would be lost on the way to NULL.
                if let Some(bus) = self.pipeline.bus() {
                    while let Some(message) = bus.pop() {
                        self.message(&message, true);
                    }
                }
                if matches!(self.phase, Phase::Starting | Phase::Playing) {
                    let text = format!("the pipeline does not go to {state:?}");
                    self.log.error(&text);
                    self.fail(&text);
                }
            }
            // The latency of a pipeline whose source is stopped by its valve cannot be asked
            // for; it is when the source is back, by another message.
            (Job::RecalculateLatency | Job::SendEos, _) => {}
        }
        None
    }

    fn due(&mut self, timer: Timer) -> Option<End> {
        self.disarm(timer);
        match timer {
            Timer::Job => {
                if let Some(job) = self.jobs.front() {
                    self.log
                        .error(&format!("{job:?} hangs: ending the process"));
                }
                return Some(End::Stuck(exit::SOFTWARE));
            }
            Timer::End => {
                self.log
                    .error("the pipeline does not come to an end: left as it is");
                return Some(End::Stuck(exit::SOFTWARE));
            }
            Timer::Eos => {
                self.log
                    .warning("EOS has not come through within 1 s: ending without it");
                self.bring_down(Next::Exit(exit::OK));
            }
            Timer::Stable => {
                self.failures = 0;
                self.backoff.reset();
            }
            Timer::Start => self.start_again(),
        }
        None
    }

    fn start(&mut self) {
        self.run.set(self.run.get() + 1);
        self.phase = Phase::Starting;
        self.live = false;
        self.buffering = false;
        self.playing_since = None;
        self.notify.status("starting");
        self.prerolled = false;
        self.submit(Job::SetState(gst::State::Paused));
    }

    /// After the back-off: with the same pipeline, or a new one every few failures.
    fn start_again(&mut self) {
        if self.failures > 0 && self.failures.is_multiple_of(REBUILD_AFTER) {
            match pipeline::build(&self.file) {
                Ok(pipeline) => {
                    self.log.info("starting a new pipeline");
                    self.pipeline = pipeline;
                    self.watch_bus();
                }
                Err(fault) => {
                    self.log.error(&fault.text);
                    self.fail("the pipeline cannot be built any more");
                    return;
                }
            }
        } else {
            self.log.info("starting again");
        }
        self.start();
    }

    fn fail(&mut self, reason: &str) {
        self.failures += 1;
        let limit = self.policy.give_up_after;
        if limit > 0 && self.failures >= limit {
            self.log.error(&format!(
                "{limit} failures in a row: giving up, last reason: {reason}"
            ));
            self.notify.status(&format!("gave up: {reason}"));
            self.bring_down(Next::Exit(exit::UNAVAILABLE));
            return;
        }
        let wait = self.backoff.next(jitter());
        let text = format!(
            "failure {} in a row, next try in {:.1} s: {reason}",
            self.failures,
            wait.as_secs_f32()
        );
        self.log.warning(&text);
        self.notify.status(&text);
        self.bring_down(Next::Start(wait));
    }

    fn bring_down(&mut self, next: Next) {
        self.disarm(Timer::Stable);
        self.disarm(Timer::Eos);
        self.phase = Phase::Down(next);
        self.submit(Job::SetState(gst::State::Null));
    }

    fn watch_bus(&mut self) {
        let bus = self.pipeline.bus().expect("every pipeline has a bus");
        let inbox = self.inbox.clone();
        let run = self.run.clone();
        // The guard of an earlier pipeline's watch ends it when dropped.
        self.watch = Some(
            bus.add_watch_local(move |_, message| {
                inbox.put(Event::Message(run.get(), message.clone()));
                glib::ControlFlow::Continue
            })
            .expect("a new pipeline's bus has no watch"),
        );
    }

    fn submit(&mut self, job: Job) {
        self.changer.submit(&self.pipeline, job);
        self.jobs.push_back(job);
        if self.jobs.len() == 1 {
            self.watch_job();
        }
    }

    /// Sets the deadline of the job that runs now.
    fn watch_job(&mut self) {
        match self.jobs.front() {
            Some(Job::SetState(gst::State::Null)) => self.arm(Timer::Job, DOWN_DEADLINE),
            Some(_) => self.arm(Timer::Job, UP_DEADLINE),
            None => self.disarm(Timer::Job),
        }
    }

    fn arm(&mut self, timer: Timer, wait: Duration) {
        self.armed += 1;
        let number = self.armed;
        self.timers[timer as usize] = number;
        let inbox = self.inbox.clone();
        glib::timeout_add_local_once(wait, move || inbox.put(Event::Due(timer, number)));
    }

    fn disarm(&mut self, timer: Timer) {
        self.timers[timer as usize] = 0;
    }
}

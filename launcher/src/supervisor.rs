// SPDX-License-Identifier: MPL-2.0

//! Keeps the pipeline running, and ends it when asked.
//!
//! Everything that happens comes as an [`Event`] through one queue to one function on the
//! main loop's thread; whatever may block is a [`Job`] on the [`Changer`]'s thread, with a
//! deadline here. A failure climbs a ladder: the same pipeline again after a back-off,
//! then a new pipeline, then the end of the process, for systemd to start it anew. Whoever
//! held the stream open holds it open on all steps but the last.

mod look;

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use droidrelay_wire::{Backoff, backoff::jitter};
use gst::prelude::*;
use rustix::process::Signal;
use tokio::sync::{oneshot, watch};

use crate::{
    changer::{Changer, Job, Outcome},
    cli::exit,
    elements::Elements,
    health::Health,
    keep::Keeper,
    launchfile::LaunchFile,
    log::Log,
    net::Net,
    notify::Notify,
    pipeline,
    poll::{Follower, News},
    report::{self, Counters},
    source::Source,
    trigger::{Trigger, Triggers},
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
    /// Media that stands still for this long where it should move is a failure; zero: it is not.
    pub stall_timeout: Duration,
    pub triggers: Vec<Trigger>,
}

pub enum Event {
    /// A message of the run with this number.
    Message(u64, gst::Message),
    Done(Job, Outcome),
    Due(Timer, u64),
    Signal(Signal),
    /// From the bridge.
    Poll(News),
    /// Somebody waits for the metrics.
    Scrape(oneshot::Sender<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
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
    /// The elements are to be looked at.
    Look,
    /// systemd's watchdog waits.
    Feed,
}

const TIMERS: usize = 7;

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
pub struct Inbox(mpsc::Sender<Event>);

impl Inbox {
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel();
        (Inbox(sender), events)
    }

    pub fn put(&self, event: Event) {
        // Without a supervisor there is nobody to tell.
        let _ = self.0.send(event);
        glib::MainContext::default().wakeup();
    }
}

pub struct Supervisor {
    source: Source,
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
    elements: Elements,
    watch: Option<gst::bus::BusWatchGuard>,
    /// What the next start runs in place of this pipeline.
    next: Option<(LaunchFile, gst::Pipeline)>,
    /// Counts the starts, so that a message of an earlier run is known as such.
    run: Rc<Cell<u64>>,
    phase: Phase,
    /// PAUSED has been reached or is being reached, PLAYING asked for.
    prerolled: bool,
    live: bool,
    buffering: bool,
    playing_since: Option<Instant>,
    failures: u32,
    /// An element is of no more use: the next start needs a new pipeline.
    broken: bool,
    /// Why the pipeline does not play.
    fault: Option<String>,
    backoff: Backoff,
    health: Health,
    triggers: Triggers,
    follower: Follower,
    counters: Counters,
    /// What was logged last of each element and of the bridge.
    told: HashMap<String, String>,
    /// The robot's state on its way to the bridge.
    states: watch::Sender<Option<String>>,
    net: Net,
    keeper: Option<Keeper>,
}

impl Supervisor {
    /// `log` hides the secrets of `file` already.
    pub fn new(
        source: Source,
        (file, pipeline): (LaunchFile, gst::Pipeline),
        policy: Policy,
        log: Log,
        (inbox, events): (Inbox, mpsc::Receiver<Event>),
    ) -> Self {
        let done = inbox.clone();
        let mut policy = policy;
        let mut supervisor = Supervisor {
            source,
            file,
            triggers: Triggers::new(std::mem::take(&mut policy.triggers)),
            policy,
            notify: Notify::new(log.clone()),
            log,
            inbox,
            events,
            changer: Changer::spawn(move |job, outcome| done.put(Event::Done(job, outcome))),
            jobs: VecDeque::new(),
            timers: [0; TIMERS],
            armed: 0,
            elements: Elements::of(&pipeline),
            pipeline,
            watch: None,
            next: None,
            run: Rc::default(),
            phase: Phase::Waiting,
            prerolled: false,
            live: false,
            buffering: false,
            playing_since: None,
            failures: 0,
            broken: false,
            fault: None,
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            health: Health::default(),
            follower: Follower::default(),
            counters: Counters::default(),
            told: HashMap::new(),
            states: watch::Sender::new(None),
            net: Net::default(),
            keeper: None,
        };
        supervisor.watch_bus();
        supervisor
    }

    /// Serves and polls with `net` while it runs; a bridge is there if the poll is part of that.
    pub fn with_net(mut self, net: Net, polls: bool) -> Self {
        self.net = net;
        self.counters.bridge = polls.then_some(false);
        self
    }

    /// Keeps leases for a process that comes after this one, and takes those of the one before.
    pub fn with_keeper(mut self, keeper: Option<Keeper>) -> Self {
        self.keeper = keeper;
        if let Some(keeper) = &mut self.keeper {
            match keeper.restore(&self.elements) {
                Ok(0) => {}
                Ok(count) => self
                    .log
                    .info(&format!("leases of the process before: {count}")),
                Err(text) => self.log.warning(&text),
            }
        }
        self
    }

    /// The robot's state, the newest one, for the bridge.
    pub fn states(&self) -> watch::Receiver<Option<String>> {
        self.states.subscribe()
    }

    pub fn elements(&self) -> &Elements {
        &self.elements
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
        self.feed();
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
        let asked = self.ending() || matches!(end, End::Exit(exit::OK));
        if let Some(keeper) = self.keeper.as_ref().filter(|_| asked) {
            keeper.forget();
        }
        match end {
            End::Exit(code) => {
                drop(self.net);
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
            Event::Poll(news) => {
                self.poll(news);
                None
            }
            Event::Scrape(answer) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.metrics());
                None
            }
        }
    }

    fn signal(&mut self, signal: Signal) -> Option<End> {
        if signal == Signal::HUP {
            self.reload();
            return None;
        }
        if self.ending() {
            self.log.warning("second signal: ended at once");
            return Some(End::Stuck(128 + signal.as_raw()));
        }
        self.log.info("ending: asked by a signal");
        self.notify.stopping();
        self.notify.status("stopping");
        if let Some(state) = report::robot_state(&self.elements.valves(), None) {
            self.tell_state(state.into_ended());
        }
        self.net.stop();
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
                // An element of Rust's that has panicked refuses everything from then on.
                self.broken |= error.error().matches(gst::LibraryError::Failed)
                    && error.error().message().starts_with("Panicked");
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
                self.fault = None;
                self.arm(Timer::Stable, STABLE);
                self.log.info("playing");
                self.look();
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
                if let Some(structure) = message.structure() {
                    self.element_message(&source, structure);
                }
            }
            _ => {}
        }
    }

    /// Reads the launch file again. The line that runs goes on where the new one is not right.
    fn reload(&mut self) {
        if self.ending() || matches!(self.phase, Phase::Down(Next::Exit(_))) {
            self.log
                .info("SIGHUP: the end has come, nothing is reloaded");
            return;
        }
        self.notify.reloading();
        self.log.info("SIGHUP: reading the launch file again");
        let loaded = self.source.load(&self.log);
        let (file, pipeline) = match loaded {
            Ok(loaded) => loaded,
            Err(failure) => {
                let text = format!("not reloaded, the old line goes on: {}", failure.text);
                self.log.error(&text);
                self.notify.status(&text);
                self.notify.reloaded();
                return;
            }
        };
        self.counters.reloads += 1;
        self.next = Some((file, pipeline));
        self.failures = 0;
        self.backoff.reset();
        match self.phase {
            Phase::Starting | Phase::Playing => self.bring_down(Next::Start(Duration::ZERO)),
            Phase::Down(_) => self.phase = Phase::Down(Next::Start(Duration::ZERO)),
            Phase::Waiting => self.arm(Timer::Start, Duration::ZERO),
            Phase::Finishing => {}
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
            Timer::Look => self.look(),
            Timer::Feed => self.feed(),
        }
        None
    }

    fn start(&mut self) {
        self.run.set(self.run.get() + 1);
        self.phase = Phase::Starting;
        self.live = false;
        self.buffering = false;
        self.playing_since = None;
        self.counters.starts += 1;
        self.notify.status("starting");
        self.notify.not_yet(UP_DEADLINE + DOWN_DEADLINE);
        self.prerolled = false;
        self.submit(Job::SetState(gst::State::Paused));
    }

    /// After the back-off: with the same pipeline, or a new one where that is asked for, an
    /// element is broken, or after every few failures.
    fn start_again(&mut self) {
        let rebuild = self.failures > 0 && self.failures.is_multiple_of(REBUILD_AFTER);
        if let Some((file, pipeline)) = self.next.take() {
            self.log.info("starting the line that was read again");
            self.file = file;
            self.replace(pipeline);
        } else if rebuild || self.broken {
            match pipeline::build(&self.file) {
                Ok(pipeline) => {
                    self.log.info("starting a new pipeline");
                    self.counters.rebuilds += 1;
                    self.replace(pipeline);
                }
                Err(fault) => {
                    self.log.error(&fault.text);
                    self.fail("the pipeline cannot be built any more");
                    return;
                }
            }
        } else {
            self.log.info("starting again");
            // To itself: what the broker keeps for it meanwhile is to be obeyed.
            self.elements.hand_over(&self.elements);
        }
        self.start();
    }

    /// Takes another pipeline, whose valves go on with the leases of the old one's.
    fn replace(&mut self, pipeline: gst::Pipeline) {
        let elements = Elements::of(&pipeline);
        self.elements.hand_over(&elements);
        self.elements = elements;
        self.pipeline = pipeline;
        self.broken = false;
        self.watch_bus();
    }

    fn fail(&mut self, reason: &str) {
        self.failures += 1;
        self.counters.failures += 1;
        self.fault = Some(reason.to_owned());
        self.notify.reloaded();
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
        self.notify.not_yet(wait + UP_DEADLINE);
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
        self.disarm(Timer::Look);
        self.phase = Phase::Down(next);
        self.look();
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

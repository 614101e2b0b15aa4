// SPDX-License-Identifier: MPL-2.0

//! Keeps the pipeline running, and ends it when asked.
//!
//! Everything that happens comes as an [`Event`] through one queue to one function on the
//! main loop's thread; whatever may block is a [`Job`] on the [`Changer`]'s thread, with a
//! deadline here. What follows on a failure is in [`Recovery`]; leases that hold the stream open
//! are kept on all steps.

use std::{
    cell::Cell,
    collections::VecDeque,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use droidrelay_wire::{RobotState, backoff::jitter, exit, words::fault::Place};
use gst::prelude::*;
use rustix::process::Signal;

use super::{
    changer::{Changer, Job, Outcome},
    elements::Elements,
    events::{Event, Inbox, Timer, Timers},
    keep,
    notify::Notify,
    observe::Observer,
    recovery::Recovery,
    retention::Retention,
    side::Side,
    statistics::Counters,
    successor::{Handover, Inherited},
};
use crate::{
    file::{launchfile::LaunchFile, pipeline, source::Source},
    log::Log,
    remote::net::Net,
};

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
/// How often the elements are looked at while somebody watches the stream.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(1);

pub struct Policy {
    pub restart_on_eos: bool,
    /// Exit after this many failures in a row; 0 = never.
    pub give_up_after: u32,
    /// Media that stands still for this long where it should move is a failure; zero: it is not.
    pub stall_timeout: Duration,
    /// Recordings that make room for others.
    pub retention: Option<Retention>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Start again after this wait.
    Start(Duration),
    /// Another process in place of this one.
    Succeed,
    Exit(u8),
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
    Exit(u8),
    /// With a thread that cannot be waited for.
    Stuck(u8),
}

/// One way from NULL to PLAYING and back.
#[derive(Default)]
struct Run {
    /// PAUSED has been reached or is being reached, PLAYING asked for.
    prerolled: bool,
    live: bool,
    buffering: bool,
    /// A side branch has failed while the pipeline was starting: that may be why it does not.
    branch_failed: bool,
    playing_since: Option<Instant>,
}

/// What of the stream an element that has failed is: an encoder, or what comes before it.
fn place_of(element: Option<&gst::Object>) -> Place {
    let element = element.and_then(|object| object.downcast_ref::<gst::Element>());
    let class = element.and_then(|element| element.metadata("klass"));
    match class.is_some_and(|class| class.contains("Encoder")) {
        true => Place::Encoder,
        false => Place::Source,
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
    timers: Timers,
    pipeline: gst::Pipeline,
    elements: Elements,
    watch: Option<gst::bus::BusWatchGuard>,
    /// What the next start runs in place of this pipeline.
    next: Option<(LaunchFile, gst::Pipeline)>,
    phase: Phase,
    run: Run,
    /// Counts the starts, so that a message of an earlier run is known as such.
    run_number: Rc<Cell<u64>>,
    recovery: Recovery,
    observer: Observer,
    side: Side,
    counters: Counters,
    /// What this process has got from the one before, where there was one.
    handed_over: Option<Handover>,
    inherited: Inherited,
    net: Net,
}

impl Supervisor {
    /// `log` hides the secrets of the launch file already; `net` ends with the pipeline.
    pub fn new(
        source: Source,
        (file, pipeline): (LaunchFile, gst::Pipeline),
        mut policy: Policy,
        observer: Observer,
        (net, inherited): (Net, Inherited),
        (inbox, events): (Inbox, mpsc::Receiver<Event>),
        log: Log,
    ) -> Self {
        let handed_over = Handover::take();
        let counters = handed_over.as_ref().map(|given| given.counters.clone());
        let done = inbox.clone();
        let mut supervisor = Supervisor {
            source,
            file,
            recovery: Recovery::new(policy.give_up_after),
            side: Side::new(inbox.clone(), policy.retention.take(), log.clone()),
            policy,
            notify: Notify::new(log.clone()),
            log,
            changer: Changer::spawn(move |job, outcome| done.put(Event::Done(job, outcome))),
            timers: Timers::new(inbox.clone()),
            inbox,
            events,
            jobs: VecDeque::new(),
            elements: Elements::of(&pipeline),
            pipeline,
            watch: None,
            next: None,
            phase: Phase::Waiting,
            run: Run::default(),
            run_number: Rc::default(),
            observer,
            counters: counters.unwrap_or_default(),
            handed_over,
            inherited,
            net,
        };
        supervisor.watch();
        supervisor
    }

    /// Runs until the end and returns the exit code.
    pub fn run(mut self) -> u8 {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let inbox = self.inbox.clone();
            glib_unix::unix_signal_add_local(signal.as_raw(), move || {
                inbox.put(Event::Signal(signal));
                glib::ControlFlow::Continue
            });
        }
        let handed_over = self.handed_over.as_ref();
        self.observer.restore_leases(&self.elements, handed_over);
        self.feed_watchdog();
        self.side.keep_room(&mut self.timers);
        self.start();
        let context = glib::MainContext::default();
        let end = loop {
            let Ok(event) = self.events.try_recv() else {
                context.iteration(true);
                continue;
            };
            if let Some(end) = self.handle(event) {
                break end;
            }
        };
        if self.is_ending() || matches!(end, End::Exit(exit::OK)) {
            self.observer.forget_leases();
        }
        match end {
            End::Exit(code) => {
                drop(self.net);
                self.changer.join();
                if !self.side.end() {
                    std::process::exit(code.into());
                }
                code
            }
            // Joining would hang, and dropping the pipeline as well.
            End::Stuck(code) => std::process::exit(code.into()),
        }
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Done(job, outcome) => return self.done(job, outcome),
            Event::Due(timer, number) if self.timers.take(timer, number) => return self.due(timer),
            Event::Due(..) => {}
            Event::Signal(signal) => return self.signal(signal),
            Event::Message(number, message) => {
                self.message(&message, number == self.run_number.get());
            }
            Event::Poll(event) => self.observer.poll(event, &self.elements),
            Event::Disk(id, outcome) => {
                self.side.done(id, outcome, &mut self.timers);
                self.branches_changed();
            }
            Event::Broker if self.is_ending() => {}
            Event::Broker => self.observe(),
            Event::Scrape(answer) => {
                let (playing, seen) = (self.phase == Phase::Playing, self.elements.snapshot());
                let branches = self.side.branches();
                let page = (self.observer).metrics(playing, &self.counters, branches, &seen);
                // The one who asked may have gone.
                let _ = answer.send(page);
            }
        }
        None
    }

    fn signal(&mut self, signal: Signal) -> Option<End> {
        if signal == Signal::HUP {
            self.reload();
            return None;
        }
        if self.is_ending() {
            self.log.warning("second signal: ended at once");
            return Some(End::Stuck(128 + signal.as_raw() as u8));
        }
        self.log.info("ending: asked by a signal");
        self.notify.stopping();
        self.notify.status("stopping");
        let state = self.elements.snapshot().robot_state();
        self.observer.report(state.map(RobotState::into_ended));
        self.net.stop();
        self.timers.arm(Timer::End, END_DEADLINE);
        match self.phase {
            Phase::Starting | Phase::Playing => {
                self.phase = Phase::Finishing;
                self.timers.arm(Timer::Eos, EOS_DEADLINE);
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

    fn is_ending(&self) -> bool {
        self.timers.is_armed(Timer::End)
    }

    /// Handles a message of the bus; `current`: it is of this run.
    fn message(&mut self, message: &gst::Message, current: bool) {
        use gst::MessageView;
        let source = message
            .src()
            .map(|source| source.name().to_string())
            .unwrap_or_default();
        let running = current && matches!(self.phase, Phase::Starting | Phase::Playing);
        let finishing = current && self.phase == Phase::Finishing;
        match message.view() {
            MessageView::Error(error) => {
                let told = message
                    .src()
                    .filter(|_| running)
                    .and_then(|source| droidrelay_camera::explain(source, &error.error()));
                let text = told.unwrap_or_else(|| error.error().message().to_owned());
                let text = format!("{source}: {text}");
                if running
                    && let Some(source) = message.src()
                    && self.side.fail(source, &text)
                {
                    self.run.branch_failed |= self.phase == Phase::Starting;
                    self.branches_changed();
                    return;
                }
                let debug = error.debug().unwrap_or_default();
                self.log.error(&format!("{text} ({debug})"));
                // Elements written in Rust say so that they have panicked; they refuse everything
                // from then on.
                if error.error().matches(gst::LibraryError::Failed) {
                    self.recovery.is_broken = true;
                }
                if running {
                    self.fail(place_of(message.src()), &text);
                } else if finishing {
                    self.bring_down(Next::Exit(exit::OK));
                }
            }
            MessageView::Warning(warning) => {
                let debug = warning.debug().unwrap_or_default();
                let text = warning.error();
                self.log
                    .warning(&format!("{source}: {} ({debug})", text.message()));
            }
            MessageView::Eos(_) if running => self.end_of_stream(),
            MessageView::Eos(_) if finishing => self.bring_down(Next::Exit(exit::OK)),
            MessageView::StateChanged(change)
                if current
                    && self.phase == Phase::Starting
                    && change.current() == gst::State::Playing
                    && message.src() == Some(self.pipeline.upcast_ref()) =>
            {
                self.playing();
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
            MessageView::Buffering(buffering) if running && !self.run.live => {
                self.buffering(buffering.percent() < 100);
            }
            MessageView::Element(_) if running => {
                if let Some(structure) = message.structure()
                    && self
                        .observer
                        .element_message(&source, structure, &self.elements)
                {
                    self.observe();
                }
            }
            _ => {}
        }
    }

    fn playing(&mut self) {
        self.phase = Phase::Playing;
        self.run.playing_since = Some(Instant::now());
        self.recovery.reason = None;
        self.timers.arm(Timer::Stable, STABLE);
        self.log.info("playing");
        self.observe();
        self.notify.ready();
    }

    fn end_of_stream(&mut self) {
        self.log.info("end of stream");
        let played = self.run.playing_since.map(|since| since.elapsed());
        let next = if !self.policy.restart_on_eos {
            Next::Exit(exit::OK)
        } else if played.is_some_and(|played| played >= SHORTEST_PLAY) {
            Next::Start(Duration::ZERO)
        } else {
            Next::Start(self.recovery.pause(jitter()))
        };
        self.bring_down(next);
    }

    /// A pipeline that is not live waits until it has buffered enough.
    fn buffering(&mut self, waits: bool) {
        if std::mem::replace(&mut self.run.buffering, waits) != waits {
            self.submit(Job::SetState(if waits {
                gst::State::Paused
            } else {
                gst::State::Playing
            }));
        }
    }

    /// Reads the launch file again. The line that runs goes on where the new one is not right.
    fn reload(&mut self) {
        if self.is_ending() || matches!(self.phase, Phase::Down(Next::Exit(_))) {
            self.log
                .info("SIGHUP: the end has come, nothing is reloaded");
            return;
        }
        self.notify.reloading();
        self.log.info("SIGHUP: reading the launch file again");
        match self.source.load(&self.log) {
            Ok(loaded) => self.next = Some(loaded),
            Err(failure) => {
                let text = format!("not reloaded, the old line goes on: {}", failure.text);
                self.log.error(&text);
                self.notify.status(&text);
                self.notify.reloaded();
                return;
            }
        }
        self.counters.reloads += 1;
        self.recovery.reset();
        match self.phase {
            Phase::Starting | Phase::Playing => self.bring_down(Next::Start(Duration::ZERO)),
            Phase::Down(_) => self.phase = Phase::Down(Next::Start(Duration::ZERO)),
            Phase::Waiting => self.timers.arm(Timer::Start, Duration::ZERO),
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
                    Next::Succeed => self.succeed(),
                    Next::Start(wait) => {
                        self.phase = Phase::Waiting;
                        self.timers.arm(Timer::Start, wait);
                    }
                }
            }
            (Job::SetState(_), Ok(success)) => {
                // Asked of PAUSED, a pipeline with live sources answers so; asked of
                // PLAYING, it may not.
                self.run.live |= success == gst::StateChangeSuccess::NoPreroll;
                if self.phase == Phase::Starting
                    && !std::mem::replace(&mut self.run.prerolled, true)
                {
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
                if self.phase == Phase::Starting && self.run.branch_failed {
                    self.log.info("starting again without that branch");
                    self.bring_down(Next::Start(Duration::ZERO));
                } else if matches!(self.phase, Phase::Starting | Phase::Playing) {
                    let text = format!("the pipeline does not go to {state:?}");
                    self.log.error(&text);
                    self.fail(Place::Source, &text);
                }
            }
            // The latency of a pipeline whose source is stopped by its valve cannot be asked
            // for; it is when the source is back, by another message.
            (Job::RecalculateLatency | Job::SendEos, _) => {}
        }
        None
    }

    fn due(&mut self, timer: Timer) -> Option<End> {
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
            Timer::Stable => self.recovery.reset(),
            Timer::Start => self.start_again(),
            Timer::Observe => self.observe(),
            Timer::Watchdog => self.feed_watchdog(),
            Timer::Branch => {
                let plays = self.phase == Phase::Playing;
                let pipeline = plays.then_some(&self.pipeline);
                self.side.retry(pipeline, &mut self.timers);
            }
            Timer::Room => self.side.keep_room(&mut self.timers),
            Timer::Succeed => self.make_way(),
        }
        None
    }

    fn start(&mut self) {
        self.run_number.set(self.run_number.get() + 1);
        self.phase = Phase::Starting;
        self.run = Run::default();
        self.counters.starts += 1;
        self.notify.status("starting");
        self.notify.not_yet(UP_DEADLINE + DOWN_DEADLINE);
        self.submit(Job::SetState(gst::State::Paused));
    }

    /// After the back-off: with the same pipeline, or a new one where that is asked for, an
    /// element is broken, or after every few failures.
    fn start_again(&mut self) {
        if let Some((file, pipeline)) = self.next.take() {
            self.log.info("starting the line that was read again");
            self.file = file;
            self.replace(pipeline);
        } else if self.recovery.needs_rebuild() {
            match pipeline::build(&self.file) {
                Ok(pipeline) => {
                    self.log.info("starting a new pipeline");
                    self.counters.rebuilds += 1;
                    self.replace(pipeline);
                }
                Err(fault) => {
                    self.log.error(&fault.text);
                    self.fail(Place::Source, "the pipeline cannot be built any more");
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
        self.recovery.is_broken = false;
        self.tell_faults();
        self.watch();
    }

    /// What is beside the stream has failed, or runs again.
    fn branches_changed(&mut self) {
        match self.phase {
            Phase::Playing => self.observe(),
            _ => self.tell_faults(),
        }
    }

    /// The valves tell what they cannot know: why the pipeline does not play, and what is wrong
    /// beside the stream.
    fn tell_faults(&self) {
        let why = |at: &Place| {
            let reason = self.recovery.reason.as_ref();
            let reason = reason.filter(|(place, _)| place == at);
            reason.map(|(_, text)| self.log.clean(text))
        };
        for at in [Place::Source, Place::Encoder] {
            self.elements.report_fault(&at, why(&at).as_deref());
        }
        let side = self.side.fault().map(|text| self.log.clean(&text));
        self.elements.report_fault(&Place::Branch, side.as_deref());
    }

    fn fail(&mut self, at: Place, reason: &str) {
        self.counters.failures += 1;
        self.notify.reloaded();
        let wait = self.recovery.fail(at, reason, jitter());
        let failures = self.recovery.failures;
        let Some(wait) = wait else {
            self.log.error(&format!(
                "{failures} failures in a row: giving up, last reason: {reason}"
            ));
            self.notify.status(&format!("gave up: {reason}"));
            self.bring_down(Next::Exit(exit::UNAVAILABLE));
            return;
        };
        self.notify.not_yet(wait + UP_DEADLINE);
        let text = format!(
            "failure {failures} in a row, next try in {:.1} s: {reason}",
            wait.as_secs_f32()
        );
        self.log.warning(&text);
        self.notify.status(&text);
        self.bring_down(Next::Start(wait));
    }

    fn bring_down(&mut self, next: Next) {
        self.timers.disarm(Timer::Stable);
        self.timers.disarm(Timer::Eos);
        self.timers.disarm(Timer::Observe);
        self.timers.disarm(Timer::Succeed);
        self.phase = Phase::Down(next);
        self.observe();
        self.submit(Job::SetState(gst::State::Null));
    }

    /// Tells systemd and the bridge what the elements say. Where media stands still, the pipeline
    /// has failed.
    fn observe(&mut self) {
        self.tell_faults();
        let seen = self.elements.snapshot();
        if !self.is_ending() {
            let mut state = seen.robot_state();
            if let Some(state) = state.as_mut().filter(|_| self.recovery.reason.is_some()) {
                state.set_down();
            }
            self.observer.report(state);
        }
        self.observer.keep_leases(&self.elements);
        if self.phase != Phase::Playing {
            return self.observer.pause();
        }
        self.observer.brokers(&seen);
        if let Some(text) = self.observer.stalled(&seen, self.policy.stall_timeout) {
            self.log.error(&text);
            return self.fail(Place::Source, &text);
        }
        self.notify.status(&seen.status());
        // What runs beside the stream is not interrupted for it.
        if seen.left_open().is_some() && self.side.is_empty() {
            if !self.timers.is_armed(Timer::Succeed) {
                let wait = Handover::wait(self.handed_over.as_ref(), keep::now());
                self.timers.arm(Timer::Succeed, wait);
            }
        } else {
            self.timers.disarm(Timer::Succeed);
        }
        if seen.is_awake() {
            self.timers.arm(Timer::Observe, OBSERVE_INTERVAL);
        }
    }

    /// Nothing but its end closes what an element of this process has left open.
    fn make_way(&mut self) {
        let left_open = self.elements.snapshot().left_open();
        let Some(devices) = left_open.filter(|_| self.phase == Phase::Playing) else {
            return;
        };
        // The successor reads it, too.
        if let Err(failure) = self.source.load(&self.log) {
            let text = failure.text;
            self.log.error(&format!(
                "{devices} stays open until the process ends, which another one would replace, but {text}"
            ));
            return;
        }
        self.log.info(&format!(
            "{devices} is still open though the camera is stopped: another process takes the place of this one"
        ));
        self.bring_down(Next::Succeed);
    }

    /// Leaves the place to another process, with all that has come until now.
    fn succeed(&mut self) {
        let now = keep::now();
        let mut counters = self.counters.clone();
        counters.successors += 1;
        let handover = Handover::new(now, self.elements.held(now), counters);
        let error = self.inherited.succeed(&handover);
        self.log.error(&format!(
            "no other process can take the place of this one, which goes on: {error}"
        ));
        self.handed_over = Some(handover);
        self.phase = Phase::Waiting;
        self.timers.arm(Timer::Start, Duration::ZERO);
    }

    /// Tells systemd's watchdog that all is well, if it is: the main loop came here, and frames
    /// left wherever they should.
    fn feed_watchdog(&mut self) {
        let Some(limit) = self.notify.watchdog() else {
            return;
        };
        let pause = limit / 2;
        if self.observer.is_healthy(pause) {
            self.notify.alive();
        }
        self.timers.arm(Timer::Watchdog, pause);
    }

    /// Has everything that the pipeline and its elements say put into the queue.
    fn watch(&mut self) {
        self.side.adopt(&self.pipeline);
        let inbox = self.inbox.clone();
        self.elements.on_broker(move || inbox.put(Event::Broker));
        let bus = self.pipeline.bus().expect("every pipeline has a bus");
        let inbox = self.inbox.clone();
        let run = self.run_number.clone();
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
            Some(Job::SetState(gst::State::Null)) => self.timers.arm(Timer::Job, DOWN_DEADLINE),
            Some(_) => self.timers.arm(Timer::Job, UP_DEADLINE),
            None => self.timers.disarm(Timer::Job),
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use droidrelay_wire::{PublishState, net::tls::Checks};
use gst::{prelude::*, subclass::prelude::*};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::{
    bitrate::Range,
    cat::CAT,
    chain::{Chain, Input},
    files::{self, FilesReader},
    news::{self, News, NewsQueue},
    publisher::MediaPublisher,
    queue::Track,
    rate::EncoderRate,
    session::{self, Owner, Target},
    settings::{Settings, State},
    sink::{AUDIO_CAPS, MediaSink, TrackOutput},
};
use crate::element::{io::Io, keyunit, link, property::typed, worker::Worker};

/// The encoder takes the first that it can: avc needs no conversion.
const VIDEO_CAPS: &str = "video/x-h264, stream-format=avc, alignment=au; \
    video/x-h264, stream-format=byte-stream; \
    video/x-h265, stream-format={hvc1, byte-stream}; \
    video/x-flv";
/// How long the way to NULL waits for the server to hear of the end.
const END_TIMEOUT: Duration = Duration::from_millis(200);

/// How long a session waits for the encoder to tell its bitrate.
const ENCODER_TIMEOUT: Duration = Duration::from_secs(1);
/// Elements upstream of a track that is waited for are asked for their latency this often.
const LATENCY_INTERVAL: Duration = Duration::from_millis(100);

/// Exists from READY on; dropped on the way to NULL.
struct Running {
    io: Arc<Io>,
    task: JoinHandle<()>,
}

impl Running {
    /// Gives a session that still ends a moment, then ends the task; false where not even that
    /// is done in time.
    fn end(self) -> bool {
        let Running { io, mut task } = self;
        let ending = async move {
            if timeout(END_TIMEOUT, &mut task).await.is_err() {
                task.abort();
                let _ = task.await;
            }
        };
        io.finish(ending, 2 * END_TIMEOUT)
    }
}

pub struct RtmpAuthSink {
    sinkpad: gst::GhostPad,
    publisher: Arc<MediaPublisher>,
    rate: EncoderRate,
    news: NewsQueue,
    /// Runs [`RtmpAuthSink::tell`].
    teller: Arc<Worker<super::RtmpAuthSink>>,
    // Locks are never held together, nor across a push, post, notify or join.
    settings: Mutex<Settings>,
    running: Mutex<Option<Running>>,
    chain: Mutex<Option<Chain>>,
    audio: Mutex<Option<(gst::GhostPad, gst::Element)>>,
    latency_asked: Mutex<Option<Instant>>,
}

/// What the session's task sees of the element.
struct TaskOwner {
    element: glib::WeakRef<super::RtmpAuthSink>,
    files: FilesReader,
}

impl TaskOwner {
    /// Calls into the element, where it still is: a panic becomes its error.
    fn call<T>(&self, otherwise: T, call: impl FnOnce(&RtmpAuthSink) -> T) -> T {
        let Some(element) = self.element.upgrade() else {
            return otherwise;
        };
        let imp = element.imp();
        gst::panic_to_error!(imp, otherwise, { call(imp) })
    }
}

impl Owner for TaskOwner {
    async fn target(&mut self) -> Result<Target, String> {
        let settings = self.call(None, |imp| Some(imp.settings.lock().clone()));
        let settings = settings.ok_or("the element is gone")?;
        self.files.target(settings).await
    }

    fn state_changed(&self, publish: &PublishState) {
        self.call((), |imp| imp.state_changed(publish));
    }

    fn bitrate_changed(&self, publish: &PublishState) {
        self.call((), |imp| imp.announce(News::Bitrate(publish.clone())));
    }

    async fn bitrates(&self) -> Option<Range> {
        let (sender, answer) = oneshot::channel();
        self.call((), |imp| {
            if imp.settings.lock().adaptive_bitrate {
                imp.announce(News::Bounds(sender));
            }
        });
        // Where nobody was asked, or nobody answers, there are none.
        timeout(ENCODER_TIMEOUT, answer).await.ok()?.ok()?
    }

    fn set_bitrate(&self, bitrate: u64) {
        self.call((), |imp| {
            gst::debug!(CAT, imp = imp, "bitrate for the encoder: {bitrate}");
            imp.rate.set(bitrate);
        });
    }
}

impl RtmpAuthSink {
    // ---- I/O thread -----------------------------------------------------------------------

    fn state_changed(&self, publish: &PublishState) {
        let state = State::from(&publish.state);
        if state == State::Idle {
            self.rate.restore();
        }
        if matches!(state, State::Idle | State::Backoff | State::Refused) {
            self.rate.end();
        }
        self.announce(News::State(publish.clone()));
    }

    // ---- any thread -----------------------------------------------------------------------

    /// Tells the world, soon.
    fn announce(&self, news: News) {
        self.news.push(news);
        self.teller.wake();
    }

    // ---- worker ---------------------------------------------------------------------------

    /// Tells the world, outside of every lock.
    fn tell(&self) {
        while let Some(news) = self.news.next() {
            match news {
                News::State(publish) => self.tell_state(&publish),
                News::Bitrate(publish) => self.tell_valve(&publish),
                News::Loss => gst::element_imp_warning!(
                    self,
                    gst::ResourceError::Write,
                    ("frames are dropped while publishing: the server does not take as much as comes. Lower the encoder's bitrate, set adaptive-bitrate=true or raise max-latency; the count is in stats, dropped-publishing")
                ),
                // The session may have ended meanwhile.
                News::Bounds(sender) => drop(sender.send(self.bitrates())),
            }
        }
    }

    fn tell_state(&self, publish: &PublishState) {
        let state = State::from(&publish.state);
        news::post(self.obj().upcast_ref(), state, publish);
        if state == State::Refused && self.settings.lock().fail_fast {
            gst::element_imp_error!(
                self,
                gst::ResourceError::NotAuthorized,
                ("{}", publish.reason.as_deref().unwrap_or_default())
            );
        }
        self.tell_valve(publish);
    }

    fn tell_valve(&self, publish: &PublishState) {
        for pad in self.obj().sink_pads() {
            // Without a valve upstream nobody takes it.
            let _ = pad.push_event(link::publish(publish));
        }
    }

    fn bitrates(&self) -> Option<Range> {
        let settings = self.settings.lock().clone();
        if !settings.adaptive_bitrate {
            return None;
        }
        let (min, max) = settings.bitrates();
        self.rate
            .begin(self.sinkpad.upcast_ref(), min, max)
            .inspect_err(|why| gst::warning!(CAT, imp = self, "no adaptive-bitrate: {why}"))
            .ok()
    }

    // ---- streaming thread -----------------------------------------------------------------

    fn sink_chain(
        &self,
        pad: &gst::GhostPad,
        track: Track,
        buffer: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if !self.publisher.accepts(track) {
            return Ok(gst::FlowSuccess::Ok);
        }
        if let Some(other) = self.publisher.waits_for_other(track) {
            self.ask_for_latency(other);
        }
        use gst::FlowError::{Eos, Flushing, NotNegotiated};
        match gst::ProxyPad::chain_default(pad, Some(&*self.obj()), buffer) {
            // Whatever else happens behind the pad is no reason to stop the stream.
            Err(err) if !matches!(err, Flushing | Eos | NotNegotiated) => {
                gst::warning!(CAT, obj = pad, "buffer dropped: {err}");
                Ok(gst::FlowSuccess::Ok)
            }
            result => result,
        }
    }

    fn sink_event(&self, pad: &gst::GhostPad, track: Track, event: gst::Event) -> bool {
        if let Some(session) = link::parse_session(&event) {
            let Some(session) = link::session_at(pad.upcast_ref(), session) else {
                gst::debug!(CAT, obj = pad, "valve: {session:?}, which others decide");
                return true;
            };
            gst::debug!(CAT, obj = pad, "valve: session {session:?}");
            self.publisher.valve(track, session);
            if let link::SessionEvent::Wanted(_) = session {
                // A valve that opens again must hear where we are, changed or not.
                pad.push_event(link::publish(&self.publisher.publish_state()));
            }
            return true;
        }
        match event.view() {
            gst::EventView::Caps(caps) if track == Track::Video => {
                if let Err(err) = self.set_chain(Input::of(caps.caps())) {
                    gst::error!(CAT, obj = pad, "{err}");
                    return false;
                }
            }
            gst::EventView::StreamStart(_) => {
                self.publisher
                    .expect(Track::Video, self.sinkpad.is_linked());
            }
            gst::EventView::Segment(_) => self.look_upstream(track),
            _ => {}
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    fn pad(&self, track: Track) -> Option<gst::GhostPad> {
        match track {
            Track::Video => Some(self.sinkpad.clone()),
            Track::Audio => self.audio.lock().as_ref().map(|(pad, _)| pad.clone()),
        }
    }

    /// Learns whether the source of `track` is live, and how late its media is. What does not tell
    /// is live.
    fn look_upstream(&self, track: Track) {
        let Some(pad) = self.pad(track) else {
            return;
        };
        let mut query = gst::query::Latency::new();
        let (is_live, latency) = if pad.peer_query(&mut query) {
            let (is_live, latency, _) = query.result();
            (is_live, latency)
        } else {
            (true, gst::ClockTime::ZERO)
        };
        gst::debug!(CAT, obj = pad, "live: {is_live}, latency {latency}");
        self.publisher.set_upstream(track, is_live, latency.into());
        self.apply_sync();
    }

    /// As [`RtmpAuthSink::look_upstream`], from the other track's thread: an encoder knows its
    /// latency before its first frame.
    fn ask_for_latency(&self, track: Track) {
        {
            let mut asked = self.latency_asked.lock();
            if asked.is_some_and(|at| at.elapsed() < LATENCY_INTERVAL) {
                return;
            }
            *asked = Some(Instant::now());
        }
        self.look_upstream(track);
    }

    /// Only a source that is not live is made to keep to the clock.
    fn apply_sync(&self) {
        let sync = self.settings.lock().sync;
        let video = self.chain.lock().as_ref().map(Chain::sink);
        let audio = self.audio.lock().as_ref().map(|(_, sink)| sink.clone());
        for (track, sink) in Track::ALL.into_iter().zip([video, audio]) {
            if let Some(sink) = sink {
                sink.set_property("sync", sync && self.publisher.is_patient(track));
            }
        }
    }

    fn sink_query(&self, pad: &gst::GhostPad, query: &mut gst::QueryRef) -> bool {
        if link::answer_session_sink(query, self.obj().upcast_ref()) {
            return true;
        }
        let template = || pad.pad_template_caps();
        match query.view_mut() {
            gst::QueryViewMut::Caps(query) => {
                let caps = match query.filter() {
                    Some(filter) => {
                        template().intersect_with_mode(filter, gst::CapsIntersectMode::First)
                    }
                    None => template(),
                };
                query.set_result(&caps);
                true
            }
            gst::QueryViewMut::AcceptCaps(query) => {
                let accepted = query.caps().can_intersect(&template());
                query.set_result(accepted);
                true
            }
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }

    // ---- inside of the bin ----------------------------------------------------------------

    fn media_sink(&self, track: Track) -> gst::Element {
        let weak = self.obj().downgrade();
        let loser = weak.clone();
        MediaSink::new(TrackOutput {
            publisher: self.publisher.clone(),
            track,
            ask_for_key_unit: Box::new(move || {
                if let Some(sink) = weak.upgrade() {
                    gst::debug!(CAT, obj = sink, "asking for a key frame");
                    let sinkpad = &sink.imp().sinkpad;
                    keyunit::by_own_means(sinkpad.upcast_ref());
                    // Without an encoder that can, the next regular one must do.
                    let _ = sinkpad.push_event(keyunit::upstream(0));
                }
            }),
            media_lost: Box::new(move || {
                if let Some(sink) = loser.upgrade() {
                    sink.imp().announce(News::Loss);
                }
            }),
        })
        .upcast()
    }

    /// Makes the chain behind the always pad what its caps need.
    fn set_chain(&self, input: Input) -> Result<(), String> {
        let old = {
            let mut chain = self.chain.lock();
            if chain.as_ref().is_some_and(|chain| chain.input == input) {
                return Ok(());
            }
            chain.take()
        };
        let obj = self.obj();
        let bin = obj.upcast_ref();
        if let Some(old) = old {
            old.remove(bin)?;
        }
        let sink = self.media_sink(Track::Video);
        let chain = Chain::build(input, bin, &self.sinkpad, sink)?;
        *self.chain.lock() = Some(chain);
        self.apply_sync();
        Ok(())
    }

    // ---- states ---------------------------------------------------------------------------

    fn set_max_latency(&self, nanoseconds: u64) {
        let most = i64::try_from(nanoseconds).unwrap_or(i64::MAX);
        self.publisher.queue(|queue| queue.max_latency = most);
    }

    /// NULL to READY: checks, and starts the task that waits for a wish.
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings.lock().clone();
        let failed = |error: String| gst::error_msg!(gst::ResourceError::Settings, ("{error}"));
        let io = Io::acquire().map_err(|err| failed(format!("cannot start a thread: {err}")))?;
        let (target, files) = files::check(io.handle(), settings.clone()).map_err(failed)?;
        if target.tls.is_some() && settings.checks() != Checks::default() {
            gst::warning!(
                CAT,
                imp = self,
                "the server's certificate is checked for {:?} only",
                settings.tls_validation_flags
            );
        }
        if self.chain.lock().is_none() {
            self.set_chain(Input::H264)
                .map_err(|error| gst::error_msg!(gst::CoreError::MissingPlugin, ("{error}")))?;
        }
        self.set_max_latency(settings.max_latency);
        self.publisher.set_sync(settings.sync);
        self.publisher.begin();
        let obj = self.obj();
        self.teller.start(&*obj, io.handle().clone(), |sink| {
            let imp = sink.imp();
            gst::panic_to_error!(imp, (), { imp.tell() });
            None
        });
        self.rate.start(obj.upcast_ref(), io.handle().clone());
        let owner = TaskOwner {
            element: obj.downgrade(),
            files,
        };
        let task = io.handle().spawn(session::run(
            self.publisher.clone(),
            io.network().clone(),
            owner,
        ));
        *self.running.lock() = Some(Running { io, task });
        Ok(())
    }

    /// READY to NULL: what was started ends.
    fn stop(&self) {
        self.publisher.end();
        let Some(running) = self.running.lock().take() else {
            return;
        };
        if !running.end() {
            gst::warning!(
                CAT,
                imp = self,
                "the publishing session did not end in time"
            );
        }
        if !self.teller.stop(END_TIMEOUT) {
            gst::warning!(
                CAT,
                imp = self,
                "who is told of the state did not return in time"
            );
        }
        if !self.rate.stop(END_TIMEOUT) {
            gst::warning!(
                CAT,
                imp = self,
                "the encoder did not take its bitrate in time"
            );
        }
    }

    fn stats(&self) -> gst::Structure {
        let stats = self.publisher.stats();
        gst::Structure::builder("application/x-rtmpauthsink-stats")
            .field("sessions", stats.sessions)
            .field("reconnects", stats.reconnects)
            .field("frames", stats.frames)
            .field("bytes", stats.bytes)
            .field("dropped", stats.dropped)
            .field("dropped-publishing", stats.lost)
            .field("queue-ms", (stats.waiting / 1_000_000) as u64)
            .field("acknowledged-bytes", stats.acknowledged)
            .field("bitrate", stats.bitrate)
            .field("target-bitrate", stats.target_bitrate.unwrap_or_default())
            .field("attempt", self.publisher.publish_state().attempt)
            .field("last-error", stats.last_error)
            .build()
    }
}

/// The functions of a ghost pad for `track`.
fn pad_functions(
    builder: gst::PadBuilder<gst::GhostPad>,
    track: Track,
) -> gst::PadBuilder<gst::GhostPad> {
    builder
        .chain_function(move |pad, parent, buffer| {
            RtmpAuthSink::catch_panic_pad_function(
                parent,
                || Err(gst::FlowError::Error),
                |sink| sink.sink_chain(pad, track, buffer),
            )
        })
        .event_function(move |pad, parent, event| {
            RtmpAuthSink::catch_panic_pad_function(
                parent,
                || false,
                |sink| sink.sink_event(pad, track, event),
            )
        })
        .query_function(move |pad, parent, query| {
            RtmpAuthSink::catch_panic_pad_function(
                parent,
                || false,
                |sink| sink.sink_query(pad, query),
            )
        })
}

#[glib::object_subclass]
impl ObjectSubclass for RtmpAuthSink {
    const NAME: &'static str = "GstRtmpAuthSink";
    type Type = super::RtmpAuthSink;
    type ParentType = gst::Bin;

    fn with_class(klass: &Self::Class) -> Self {
        let template = klass.pad_template("sink").unwrap();
        let sinkpad = pad_functions(
            gst::GhostPad::builder_from_template(&template),
            Track::Video,
        )
        .build();
        RtmpAuthSink {
            sinkpad,
            publisher: Arc::new(MediaPublisher::new()),
            rate: EncoderRate::new(),
            news: NewsQueue::default(),
            teller: Worker::new(),
            settings: Mutex::default(),
            running: Mutex::default(),
            chain: Mutex::default(),
            audio: Mutex::default(),
            latency_asked: Mutex::default(),
        }
    }
}

impl ObjectImpl for RtmpAuthSink {
    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.set_suppressed_flags(gst::ElementFlags::SOURCE | gst::ElementFlags::SINK);
        obj.set_element_flags(gst::ElementFlags::SINK);
        obj.add_pad(&self.sinkpad).unwrap();
        let weak = obj.downgrade();
        // A valve that went with what was unlinked says nothing more.
        self.sinkpad.connect_unlinked(move |_, _| {
            if let Some(sink) = weak.upgrade() {
                sink.imp().publisher.unlinked(Track::Video);
            }
        });
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(Settings::specs);
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let name = pspec.name();
        if !matches!(name, "password" | "location") {
            gst::info!(CAT, imp = self, "{name}: {:?}", value.transform::<String>());
        }
        self.settings.lock().set(name, value);
        match name {
            "max-latency" => self.set_max_latency(typed(value)),
            "sync" => {
                self.publisher.set_sync(typed(value));
                self.apply_sync();
            }
            _ => {}
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "state" => State::from(&self.publisher.publish_state().state).to_value(),
            "stats" => self.stats().to_value(),
            name => self.settings.lock().get(name),
        }
    }
}

impl GstObjectImpl for RtmpAuthSink {}

impl ElementImpl for RtmpAuthSink {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::with_additional(
                "RTMP publisher with credentials",
                "Sink/Network/Bin",
                "Publishes H.264 and audio to an RTMP server that asks for credentials, and outlives its faults",
                env!("CARGO_PKG_REPOSITORY"),
                super::doc::DOC,
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            let template = |name, presence, caps: &str| {
                let caps: gst::Caps = caps.parse().unwrap();
                gst::PadTemplate::new(name, gst::PadDirection::Sink, presence, &caps).unwrap()
            };
            vec![
                template("sink", gst::PadPresence::Always, VIDEO_CAPS),
                template("audio", gst::PadPresence::Request, AUDIO_CAPS),
            ]
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        if self.audio.lock().is_some() {
            gst::warning!(CAT, imp = self, "there is one audio pad already");
            return None;
        }
        let obj = self.obj();
        let sink = self.media_sink(Track::Audio);
        let target = sink.static_pad("sink")?;
        let pad = pad_functions(
            gst::GhostPad::builder_from_template(template).name("audio"),
            Track::Audio,
        )
        .build();
        obj.add(&sink).ok()?;
        pad.set_target(Some(&target)).ok()?;
        sink.sync_state_with_parent().ok()?;
        pad.set_active(true).ok()?;
        obj.add_pad(&pad).ok()?;
        self.publisher.expect(Track::Audio, true);
        *self.audio.lock() = Some((pad.clone(), sink));
        Some(pad.upcast())
    }

    fn release_pad(&self, pad: &gst::Pad) {
        let audio = self
            .audio
            .lock()
            .take_if(|(audio, _)| audio.upcast_ref::<gst::Pad>() == pad);
        let Some((pad, sink)) = audio else {
            return;
        };
        self.publisher.expect(Track::Audio, false);
        let obj = self.obj();
        // Both are ours, so that nothing can be wrong with taking them out.
        let _ = pad.set_active(false);
        let _ = obj.remove_pad(&pad);
        let _ = obj.remove(&sink);
        let _ = sink.set_state(gst::State::Null);
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        gst::trace!(CAT, imp = self, "{transition:?}");
        match transition {
            gst::StateChange::NullToReady => self.start().map_err(|error| {
                self.post_error_message(error);
                gst::StateChangeError
            })?,
            gst::StateChange::ReadyToPaused => {
                let is_linked = self.sinkpad.is_linked();
                self.publisher.expect(Track::Video, is_linked);
                self.publisher.set_running(true);
            }
            _ => {}
        }
        let result = self.parent_change_state(transition);
        match transition {
            gst::StateChange::PausedToReady => self.publisher.set_running(false),
            gst::StateChange::ReadyToNull => self.stop(),
            gst::StateChange::NullToReady if result.is_err() => self.stop(),
            _ => {}
        }
        result
    }
}

impl BinImpl for RtmpAuthSink {
    fn handle_message(&self, message: gst::Message) {
        if let gst::MessageView::Error(error) = message.view() {
            // A frame that cannot be parsed is no reason to end the pipeline.
            gst::warning!(CAT, imp = self, "kept inside: {}", error.error());
            return;
        }
        self.parent_handle_message(message);
    }
}

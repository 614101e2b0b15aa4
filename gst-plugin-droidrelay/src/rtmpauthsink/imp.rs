// SPDX-License-Identifier: MPL-2.0

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use droidrelay_wire::{
    PublishState, Secret,
    net::tls::{self, Checks, TlsFiles},
};
use gio::TlsCertificateFlags;
use gst::{prelude::*, subclass::prelude::*};
use once_cell::sync::Lazy;
use tokio::task::JoinHandle;

use super::{
    CredentialMode, Credentials, Location, State,
    bitrate::Range,
    encoder::Encoder,
    publisher::Publisher,
    queue::Track,
    session::{self, Login, Owner, Target},
    sink::{Link, MediaSink},
};
use crate::element::{
    io::Io,
    keyunit, link,
    property::{path, path_value, secret_spec, text, text_spec},
    worker::Worker,
};

pub static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new(
        "rtmpauthsink",
        gst::DebugColorFlags::empty(),
        Some("RTMP publisher with credentials"),
    )
});

const DEFAULT_TLS_VALIDATION_FLAGS: TlsCertificateFlags = TlsCertificateFlags::VALIDATE_ALL;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_LATENCY: gst::ClockTime = gst::ClockTime::from_seconds(1);
/// Nobody expects an element to change the settings of another one unasked.
const DEFAULT_ADAPTIVE_BITRATE: bool = false;
/// What the encoder was set to.
const DEFAULT_MAX_BITRATE: u32 = 0;
/// A tenth of the most.
const DEFAULT_MIN_BITRATE: u32 = 0;
/// A session begins with the bitrate that the last one ended with, if that was not longer ago.
const REMEMBERED: Duration = Duration::from_secs(300);
const DEFAULT_START_OFFSET: bool = true;
const DEFAULT_FAIL_FAST: bool = false;
/// How long the way to NULL waits for the server to hear of the end.
const END_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
struct Settings {
    /// As parsed, without credentials; the error where it is no location.
    location: Option<Result<Location, String>>,
    url_credentials: Credentials,
    user: Option<String>,
    password: Option<Secret>,
    password_file: Option<PathBuf>,
    credential_mode: CredentialMode,
    ca_file: Option<PathBuf>,
    tls_validation_flags: TlsCertificateFlags,
    timeout: Duration,
    max_latency: gst::ClockTime,
    adaptive_bitrate: bool,
    /// Kilobits per second.
    min_bitrate: u32,
    max_bitrate: u32,
    start_offset: bool,
    fail_fast: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            location: None,
            url_credentials: Credentials::default(),
            user: None,
            password: None,
            password_file: None,
            credential_mode: CredentialMode::default(),
            ca_file: None,
            tls_validation_flags: DEFAULT_TLS_VALIDATION_FLAGS,
            timeout: DEFAULT_TIMEOUT,
            max_latency: DEFAULT_MAX_LATENCY,
            adaptive_bitrate: DEFAULT_ADAPTIVE_BITRATE,
            min_bitrate: DEFAULT_MIN_BITRATE,
            max_bitrate: DEFAULT_MAX_BITRATE,
            start_offset: DEFAULT_START_OFFSET,
            fail_fast: DEFAULT_FAIL_FAST,
        }
    }
}

impl Settings {
    fn set_location(&mut self, url: Option<&str>) {
        self.url_credentials = Credentials::default();
        self.location = url.filter(|url| !url.is_empty()).map(|url| {
            let (location, credentials) = Location::parse(url)?;
            self.url_credentials = credentials;
            Ok(location)
        });
    }

    fn location(&self) -> Result<&Location, String> {
        match &self.location {
            None => Err("location is not set: give rtmp://host/app/stream".into()),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(location)) => Ok(location),
        }
    }

    /// Reads `password-file`, so that each session has the newest secret.
    fn credentials(&self) -> Result<Credentials, String> {
        let password = match &self.password_file {
            Some(path) => Some(Secret::from_file(path)?),
            None => self
                .password
                .clone()
                .or_else(|| self.url_credentials.password.clone()),
        };
        let user = self
            .user
            .clone()
            .or_else(|| self.url_credentials.user.clone());
        Ok(Credentials { user, password })
    }

    /// TLS for the location, where it asks for it; anew where `known` came from other files.
    fn tls(&self, known: Option<Tls>) -> Result<Option<Tls>, String> {
        let location = self.location()?;
        if !location.tls {
            return Ok(None);
        }
        let files = TlsFiles {
            ca_file: self.ca_file.clone(),
            checks: checks(self.tls_validation_flags),
            ..TlsFiles::default()
        };
        if let Some(known) = known.filter(|known| known.files == files) {
            return Ok(Some(known));
        }
        let client = files.client().map_err(|err| format!("{location}: {err}"))?;
        Ok(Some(Tls { files, client }))
    }

    fn target(&self, tls: Option<&Tls>) -> Result<Target, String> {
        let location = self.location()?;
        let credentials = self.credentials()?;
        let login = match (self.credential_mode, &credentials) {
            (
                CredentialMode::Rtmp,
                Credentials {
                    user: Some(user),
                    password: Some(password),
                },
            ) => Some(Login {
                user: user.clone(),
                password: password.clone(),
            }),
            (CredentialMode::Rtmp, _) => {
                return Err(
                    "credential-mode=rtmp needs both: set user, and password-file or password"
                        .into(),
                );
            }
            _ => None,
        };
        Ok(Target {
            stream: location.stream_name(&credentials, self.credential_mode.into()),
            login,
            location: location.clone(),
            tls: tls.map(|tls| tls.client.clone()),
            timeout: self.timeout,
            start_offset: self.start_offset,
        })
    }
}

fn checks(flags: TlsCertificateFlags) -> Checks {
    Checks {
        unknown_ca: flags.contains(TlsCertificateFlags::UNKNOWN_CA),
        bad_identity: flags.contains(TlsCertificateFlags::BAD_IDENTITY),
        not_activated: flags.contains(TlsCertificateFlags::NOT_ACTIVATED),
        expired: flags.contains(TlsCertificateFlags::EXPIRED),
        insecure: flags.contains(TlsCertificateFlags::INSECURE),
        generic_error: flags.contains(TlsCertificateFlags::GENERIC_ERROR),
    }
}

/// Kept from session to session: the system's trust store takes its time to read.
#[derive(Clone)]
struct Tls {
    files: TlsFiles,
    client: tls::Client,
}

/// Exists from READY on; dropped on the way to NULL.
struct Running {
    io: Arc<Io>,
    task: JoinHandle<()>,
    tls: Option<Tls>,
}

/// What comes on the always pad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    H264,
    H265,
    Flv,
}

impl Input {
    fn of(caps: &gst::CapsRef) -> Self {
        match caps.structure(0).map(|structure| structure.name().as_str()) {
            Some("video/x-flv") => Input::Flv,
            Some("video/x-h265") => Input::H265,
            _ => Input::H264,
        }
    }

    /// The element that makes it what the session sends.
    fn parser(self) -> Option<&'static str> {
        match self {
            Input::H264 => Some("h264parse"),
            Input::H265 => Some("h265parse"),
            Input::Flv => None,
        }
    }
}

/// The chain behind the always pad.
struct Chain {
    input: Input,
    elements: Vec<gst::Element>,
}

/// An encoder that is led.
struct Led {
    encoder: Encoder,
    /// What others have set it to.
    own: Option<u64>,
    /// What this element has set it to, until it is given back.
    set: Option<u64>,
}

/// What the encoder is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Bitrate(u64),
    Own,
}

pub struct RtmpAuthSink {
    sinkpad: gst::GhostPad,
    publisher: Arc<Publisher>,
    // Locks are never held together, nor across a push, post, notify or join.
    settings: Mutex<Settings>,
    running: Mutex<Option<Running>>,
    chain: Mutex<Option<Chain>>,
    audio: Mutex<Option<(gst::GhostPad, gst::Element)>>,
    /// Tells the encoder: that may take it a moment.
    worker: Arc<Worker<super::RtmpAuthSink>>,
    led: Mutex<Option<Led>>,
    wish: Mutex<Option<Wish>>,
    /// What the uplink carried, and when.
    carried: Mutex<Option<(u64, Instant)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the session's task sees of the element.
struct Sink(glib::WeakRef<super::RtmpAuthSink>);

impl Owner for Sink {
    fn target(&self) -> Result<Target, String> {
        let sink = self.0.upgrade().ok_or("the element is gone")?;
        let imp = sink.imp();
        let settings = locked(&imp.settings).clone();
        let known = locked(&imp.running)
            .as_ref()
            .and_then(|running| running.tls.clone());
        let tls = settings.tls(known)?;
        let target = settings.target(tls.as_ref());
        if let Some(running) = locked(&imp.running).as_mut() {
            running.tls = tls;
        }
        target
    }

    fn state_changed(&self, publish: &PublishState) {
        if let Some(sink) = self.0.upgrade() {
            let imp = sink.imp();
            gst::panic_to_error!(imp, (), { imp.state_changed(publish) });
        }
    }

    fn bitrate_changed(&self, publish: &PublishState) {
        if let Some(sink) = self.0.upgrade() {
            let imp = sink.imp();
            gst::panic_to_error!(imp, (), { imp.tell_valve(publish) });
        }
    }

    fn bitrates(&self) -> Option<Range> {
        let sink = self.0.upgrade()?;
        let imp = sink.imp();
        gst::panic_to_error!(imp, None, { imp.bitrates() })
    }

    fn set_bitrate(&self, bitrate: u64) {
        if let Some(sink) = self.0.upgrade() {
            let imp = sink.imp();
            gst::debug!(CAT, imp = imp, "bitrate for the encoder: {bitrate}");
            *locked(&imp.carried) = Some((bitrate, Instant::now()));
            imp.wish(Wish::Bitrate(bitrate));
        }
    }
}

impl RtmpAuthSink {
    // ---- I/O thread -----------------------------------------------------------------------

    /// Tells the world, outside of every lock.
    fn state_changed(&self, publish: &PublishState) {
        let state = State::from_word(publish.state.as_str());
        let reason = publish.reason.as_deref();
        match state {
            State::Backoff | State::Refused => gst::warning!(
                CAT,
                imp = self,
                "{}: {}, next try in {:.2} s",
                publish.state,
                reason.unwrap_or_default(),
                publish.next_try.unwrap_or_default()
            ),
            _ => gst::info!(CAT, imp = self, "{}", publish.state),
        }
        if state == State::Idle {
            self.wish(Wish::Own);
        }
        if let (State::Idle | State::Backoff | State::Refused, Some((_, at))) =
            (state, locked(&self.carried).as_mut())
        {
            *at = Instant::now();
        }
        let obj = self.obj();
        obj.notify("state");
        let structure = gst::Structure::builder("rtmpauthsink-state")
            .field("state", publish.state.as_str())
            .field("reason", reason)
            .field("attempt", publish.attempt)
            .field("next-try", publish.next_try.unwrap_or_default())
            .build();
        let element = gst::message::Element::builder(structure).src(&*obj).build();
        // Without a bus nobody listens.
        let _ = obj.post_message(element);
        if let Some((kind, text)) = progress(state) {
            let text = reason.unwrap_or(text);
            let progress = gst::message::Progress::builder(kind, "publish", text)
                .src(&*obj)
                .build();
            let _ = obj.post_message(progress);
        }
        if state == State::Refused && locked(&self.settings).fail_fast {
            gst::element_imp_error!(
                self,
                gst::ResourceError::NotAuthorized,
                ("{}", reason.unwrap_or_default())
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
        let settings = locked(&self.settings).clone();
        if !settings.adaptive_bitrate {
            return None;
        }
        let unable = |why: String| gst::warning!(CAT, imp = self, "no adaptive-bitrate: {why}");
        let encoder = match Encoder::upstream(self.sinkpad.upcast_ref()) {
            Ok(encoder) => encoder,
            Err(why) => {
                unable(why);
                return None;
            }
        };
        let known = locked(&self.led)
            .as_ref()
            .filter(|led| led.encoder == encoder && led.set.is_some())
            .map(|led| led.own);
        let own = known.unwrap_or_else(|| {
            let own = encoder.bitrate();
            *locked(&self.led) = Some(Led {
                encoder,
                own,
                set: None,
            });
            own
        });
        let given = |kilobits: u32| (kilobits > 0).then(|| u64::from(kilobits) * 1000);
        let Some(max) = given(settings.max_bitrate).or(own) else {
            unable("the encoder does not tell its bitrate: set max-bitrate".into());
            return None;
        };
        let min = given(settings.min_bitrate).unwrap_or(max / 10).min(max);
        let carried = *locked(&self.carried);
        let start = carried
            .filter(|(_, at)| at.elapsed() < REMEMBERED)
            .map_or(max, |(bitrate, _)| bitrate)
            .clamp(min, max);
        self.wish(Wish::Bitrate(start));
        Some(Range { min, max, start })
    }

    fn wish(&self, wish: Wish) {
        *locked(&self.wish) = Some(wish);
        self.worker.wake();
    }

    // ---- thread pool ----------------------------------------------------------------------

    fn fulfil(&self) {
        let Some(wish) = locked(&self.wish).take() else {
            return;
        };
        let Some(encoder) = locked(&self.led).as_ref().map(|led| led.encoder.clone()) else {
            return;
        };
        let found = encoder.bitrate();
        let bitrate = self.with_led(&encoder, |led| {
            if led.set.is_none() || led.set != found {
                // Others have set it meanwhile.
                led.own = found;
            }
            match wish {
                Wish::Bitrate(bitrate) => {
                    led.set = Some(bitrate);
                    led.set
                }
                Wish::Own => led.own.filter(|_| led.set.is_some()),
            }
        });
        if let Some(bitrate) = bitrate {
            encoder.set_bitrate(bitrate);
        }
        // As the encoder rounds it.
        let set = encoder.bitrate().filter(|_| wish != Wish::Own);
        self.with_led(&encoder, |led| {
            led.set = set;
            None::<u64>
        });
    }

    fn with_led<T>(
        &self,
        encoder: &Encoder,
        change: impl FnOnce(&mut Led) -> Option<T>,
    ) -> Option<T> {
        locked(&self.led)
            .as_mut()
            .filter(|led| led.encoder == *encoder)
            .and_then(change)
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
        match gst::ProxyPad::chain_default(pad, Some(&*self.obj()), buffer) {
            Err(gst::FlowError::Flushing) => Err(gst::FlowError::Flushing),
            Err(gst::FlowError::Eos) => Err(gst::FlowError::Eos),
            Err(gst::FlowError::NotNegotiated) => Err(gst::FlowError::NotNegotiated),
            // Whatever happens behind the pad is no reason to stop the stream.
            Err(err) => {
                gst::warning!(CAT, obj = pad, "buffer dropped: {err}");
                Ok(gst::FlowSuccess::Ok)
            }
            Ok(success) => Ok(success),
        }
    }

    fn sink_event(&self, pad: &gst::GhostPad, track: Track, event: gst::Event) -> bool {
        if let Some(session) = link::parse_session(&event) {
            gst::debug!(CAT, obj = pad, "valve: session {session:?}");
            self.publisher.valve(track, session);
            if let link::Session::Wanted(_) = session {
                // A valve that opens again must hear where we are, changed or not.
                pad.push_event(link::publish(&self.publisher.publish_state()));
            }
            return true;
        }
        if let gst::EventView::Caps(caps) = event.view()
            && track == Track::Video
            && let Err(err) = self.set_chain(Input::of(caps.caps()))
        {
            gst::error!(CAT, obj = pad, "{err}");
            return false;
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
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
        MediaSink::new(Link {
            publisher: self.publisher.clone(),
            track,
            ask_for_key_unit: Box::new(move || {
                if let Some(sink) = weak.upgrade() {
                    gst::debug!(CAT, obj = sink, "asking for a key frame");
                    let sinkpad = &sink.imp().sinkpad;
                    keyunit::by_controls(sinkpad.upcast_ref());
                    // Without an encoder that can, the next regular one must do.
                    let _ = sinkpad.push_event(keyunit::upstream(0));
                }
            }),
        })
        .upcast()
    }

    /// Makes the chain behind the always pad what its caps need.
    fn set_chain(&self, input: Input) -> Result<(), String> {
        let old = {
            let mut chain = locked(&self.chain);
            if chain.as_ref().is_some_and(|chain| chain.input == input) {
                return Ok(());
            }
            chain.take()
        };
        let obj = self.obj();
        let failed = |err: glib::BoolError| format!("cannot set up the bin: {err}");
        for element in old.into_iter().flat_map(|chain| chain.elements) {
            obj.remove(&element).map_err(failed)?;
            element
                .set_state(gst::State::Null)
                .map_err(|err| format!("cannot stop {}: {err}", element.name()))?;
        }
        let sink = self.media_sink(Track::Video);
        let mut elements = vec![sink];
        if let Some(name) = input.parser() {
            let parser = gst::ElementFactory::make(name).build().map_err(|_| {
                format!("the element {name} is missing: install gstreamer1.0-plugins-bad")
            })?;
            elements.insert(0, parser);
        }
        obj.add_many(&elements).map_err(failed)?;
        gst::Element::link_many(&elements).map_err(failed)?;
        let target = elements[0].static_pad("sink");
        self.sinkpad.set_target(target.as_ref()).map_err(failed)?;
        for element in elements.iter().rev() {
            element.sync_state_with_parent().map_err(failed)?;
        }
        *locked(&self.chain) = Some(Chain { input, elements });
        Ok(())
    }

    // ---- states ---------------------------------------------------------------------------

    /// NULL to READY: checks, and starts the task that waits for a wish.
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = locked(&self.settings).clone();
        let failed = |error: String| gst::error_msg!(gst::ResourceError::Settings, ("{error}"));
        let tls = settings.tls(None).map_err(failed)?;
        if tls.is_some() && checks(settings.tls_validation_flags) != Checks::default() {
            gst::warning!(
                CAT,
                imp = self,
                "the server's certificate is checked for {:?} only",
                settings.tls_validation_flags
            );
        }
        settings.target(tls.as_ref()).map_err(failed)?;
        if locked(&self.chain).is_none() {
            self.set_chain(Input::H264)
                .map_err(|error| gst::error_msg!(gst::CoreError::MissingPlugin, ("{error}")))?;
        }
        let io = Io::acquire().map_err(|err| failed(format!("cannot start a thread: {err}")))?;
        self.publisher
            .set_max_latency(settings.max_latency.nseconds() as i64);
        self.publisher.begin();
        self.worker.start(&self.obj(), io.handle().clone(), |sink| {
            sink.imp().fulfil();
            None
        });
        let owner = Sink(self.obj().downgrade());
        let task = io
            .handle()
            .spawn(session::run(self.publisher.clone(), owner));
        *locked(&self.running) = Some(Running { io, task, tls });
        Ok(())
    }

    /// READY to NULL: gives a session that still ends a moment, then ends the task.
    fn stop(&self) {
        self.publisher.end();
        let Some(Running { io, mut task, .. }) = locked(&self.running).take() else {
            return;
        };
        let (done, ended) = mpsc::channel();
        io.handle().spawn(async move {
            if tokio::time::timeout(END_TIMEOUT, &mut task).await.is_err() {
                task.abort();
                let _ = task.await;
            }
            // The receiver may have given up.
            let _ = done.send(());
        });
        if ended.recv_timeout(2 * END_TIMEOUT).is_err() {
            gst::warning!(
                CAT,
                imp = self,
                "the publishing session did not end in time"
            );
        }
        self.wish(Wish::Own);
        if !self.worker.stop(END_TIMEOUT) {
            gst::warning!(
                CAT,
                imp = self,
                "the encoder did not take its bitrate in time"
            );
        }
    }
}

fn progress(state: State) -> Option<(gst::ProgressType, &'static str)> {
    match state {
        State::Idle => None,
        State::Connecting => Some((gst::ProgressType::Start, "Connecting to the server")),
        State::Publishing => Some((gst::ProgressType::Complete, "Publishing")),
        State::Backoff => Some((gst::ProgressType::Canceled, "Waiting for the next try")),
        State::Refused => Some((gst::ProgressType::Canceled, "Refused by the server")),
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
            publisher: Arc::new(Publisher::new()),
            settings: Mutex::default(),
            running: Mutex::default(),
            chain: Mutex::default(),
            audio: Mutex::default(),
            worker: Worker::new(),
            led: Mutex::default(),
            wish: Mutex::default(),
            carried: Mutex::default(),
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
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(|| {
            vec![
                text_spec("location", "Location", "Where to publish: rtmp:// or rtmps://host[:port]/app/stream. Credentials in it (userinfo, user= and pass= in the query) are taken out at once; it reads back without them"),
                text_spec("user", "User", "User name of the publisher. Unset: none, or the one from the location"),
                secret_spec("password", "Password", "Password (or token) of the publisher; on a command line every user of the machine can read it, so prefer password-file"),
                text_spec("password-file", "Password File", "File whose first line is the password (or token) of the publisher; read anew for each session. Wins over password"),
                glib::ParamSpecEnum::builder_with_default("credential-mode", CredentialMode::default())
                    .nick("Credential Mode")
                    .blurb("How the credentials reach the server; rtmp needs user and password")
                    .mutable_ready()
                    .build(),
                text_spec("ca-file", "CA File", "PEM file of the certificates to trust for rtmps: of CAs, or the server's own. Unset: the system's trust store"),
                glib::ParamSpecFlags::builder("tls-validation-flags")
                    .nick("TLS Validation Flags")
                    .blurb("What is checked of the server's certificate for rtmps. INSECURE with anything left out: somebody on the way may then read password and stream; to trust a certificate of one's own, set ca-file. Revocation is never checked")
                    .default_value(DEFAULT_TLS_VALIDATION_FLAGS)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("timeout")
                    .nick("Timeout")
                    .blurb("Seconds for which a server may be silent while something is due from it, before the session is given up and tried anew")
                    .minimum(1)
                    .maximum(3600)
                    .default_value(DEFAULT_TIMEOUT.as_secs() as u32)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("max-latency")
                    .nick("Maximum Latency")
                    .blurb("Nanoseconds of media that may wait for a slow uplink, in the socket too; older media is dropped up to a key frame, which is asked for")
                    .default_value(DEFAULT_MAX_LATENCY.nseconds())
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("adaptive-bitrate")
                    .nick("Adaptive Bitrate")
                    .blurb("Whether the bitrate of the encoder upstream follows what the uplink carries. The encoder has its own again when no session is wanted. Read when a session begins")
                    .default_value(DEFAULT_ADAPTIVE_BITRATE)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("min-bitrate")
                    .nick("Minimum Bitrate")
                    .blurb("Kilobits per second below which adaptive-bitrate never goes. 0: a tenth of the maximum. Read when a session begins")
                    .default_value(DEFAULT_MIN_BITRATE)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("max-bitrate")
                    .nick("Maximum Bitrate")
                    .blurb("Kilobits per second above which adaptive-bitrate never goes. 0: what the encoder is set to. Read when a session begins")
                    .default_value(DEFAULT_MAX_BITRATE)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("start-offset")
                    .nick("Start Offset")
                    .blurb("Whether media starts at 2 s of the session's time, which ends MediaMTX's analysis of the first two seconds with the first frame; harmless with other servers. Not done beside MP3, whose track the server would miss")
                    .default_value(DEFAULT_START_OFFSET)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoolean::builder("fail-fast")
                    .nick("Fail Fast")
                    .blurb("Whether a refusal by the server is an error of the pipeline instead of being tried again")
                    .default_value(DEFAULT_FAIL_FAST)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("state", State::default())
                    .nick("State")
                    .blurb("State of the publishing session; with notify")
                    .read_only()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("Structure application/x-rtmpauthsink-stats with sessions, reconnects, frames, bytes (sent), dropped (frames), queue-ms (milliseconds of media that wait, in the socket too), acknowledged-bytes (by the server), bitrate (bits per second that the server took over the last seconds), target-bitrate (bits per second that the encoder is told to make; 0: it is left alone), attempt (tries since the last accepted session), last-error")
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let flag = || value.get::<bool>().expect("checked by GObject");
        let number = || value.get::<u32>().expect("checked by GObject");
        let name = pspec.name();
        if !matches!(name, "password" | "location") {
            gst::info!(CAT, imp = self, "{name}: {:?}", value.transform::<String>());
        }
        let mut settings = locked(&self.settings);
        match name {
            "location" => settings.set_location(text(value).as_deref()),
            "user" => settings.user = text(value),
            "password" => settings.password = text(value).map(Secret::new),
            "password-file" => settings.password_file = path(value),
            "credential-mode" => {
                settings.credential_mode = value.get().expect("checked by GObject");
            }
            "ca-file" => settings.ca_file = path(value),
            "tls-validation-flags" => {
                settings.tls_validation_flags = value.get().expect("checked by GObject");
            }
            "timeout" => {
                settings.timeout = Duration::from_secs(number().into());
            }
            "max-latency" => {
                let nanoseconds = value.get::<u64>().expect("checked by GObject");
                settings.max_latency = gst::ClockTime::from_nseconds(nanoseconds);
                drop(settings);
                self.publisher
                    .set_max_latency(i64::try_from(nanoseconds).unwrap_or(i64::MAX));
            }
            "adaptive-bitrate" => settings.adaptive_bitrate = flag(),
            "min-bitrate" => settings.min_bitrate = number(),
            "max-bitrate" => settings.max_bitrate = number(),
            "start-offset" => settings.start_offset = flag(),
            "fail-fast" => settings.fail_fast = flag(),
            _ => unreachable!("GObject knows no property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "state" => {
                return State::from_word(self.publisher.publish_state().state.as_str()).to_value();
            }
            "stats" => return self.stats().to_value(),
            _ => {}
        }
        let settings = locked(&self.settings);
        match pspec.name() {
            "location" => settings
                .location()
                .ok()
                .map(|location| location.to_string())
                .to_value(),
            "user" => settings.user.to_value(),
            "password-file" => path_value(settings.password_file.as_ref()),
            "credential-mode" => settings.credential_mode.to_value(),
            "ca-file" => path_value(settings.ca_file.as_ref()),
            "tls-validation-flags" => settings.tls_validation_flags.to_value(),
            "timeout" => (settings.timeout.as_secs() as u32).to_value(),
            "max-latency" => settings.max_latency.nseconds().to_value(),
            "adaptive-bitrate" => settings.adaptive_bitrate.to_value(),
            "min-bitrate" => settings.min_bitrate.to_value(),
            "max-bitrate" => settings.max_bitrate.to_value(),
            "start-offset" => settings.start_offset.to_value(),
            "fail-fast" => settings.fail_fast.to_value(),
            name => unreachable!("GObject knows no property {name}"),
        }
    }
}

impl RtmpAuthSink {
    fn stats(&self) -> gst::Structure {
        let (stats, dropped, latency) = self.publisher.stats();
        gst::Structure::builder("application/x-rtmpauthsink-stats")
            .field("sessions", stats.sessions)
            .field("reconnects", stats.reconnects)
            .field("frames", stats.frames)
            .field("bytes", stats.bytes)
            .field("dropped", dropped)
            .field("queue-ms", (latency / 1_000_000) as u64)
            .field("acknowledged-bytes", stats.acknowledged)
            .field("bitrate", stats.bitrate)
            .field("target-bitrate", stats.target_bitrate.unwrap_or_default())
            .field("attempt", self.publisher.publish_state().attempt)
            .field("last-error", stats.last_error)
            .build()
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
            // The encoder takes the first that it can: avc needs no conversion.
            let mut caps = gst::Caps::builder("video/x-h264")
                .field("stream-format", "avc")
                .field("alignment", "au")
                .build();
            caps.merge(
                gst::Caps::builder("video/x-h264")
                    .field("stream-format", "byte-stream")
                    .build(),
            );
            caps.merge(
                gst::Caps::builder("video/x-h265")
                    .field("stream-format", gst::List::new(["hvc1", "byte-stream"]))
                    .build(),
            );
            caps.merge(gst::Caps::new_empty_simple("video/x-flv"));
            let template = |name, presence, caps: &gst::Caps| {
                gst::PadTemplate::new(name, gst::PadDirection::Sink, presence, caps).unwrap()
            };
            vec![
                template("sink", gst::PadPresence::Always, &caps),
                template("audio", gst::PadPresence::Request, &super::audio_caps()),
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
        if locked(&self.audio).is_some() {
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
        *locked(&self.audio) = Some((pad.clone(), sink));
        Some(pad.upcast())
    }

    fn release_pad(&self, pad: &gst::Pad) {
        let audio = locked(&self.audio).take_if(|(audio, _)| audio.upcast_ref::<gst::Pad>() == pad);
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
            gst::StateChange::ReadyToPaused => self.publisher.set_running(true),
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

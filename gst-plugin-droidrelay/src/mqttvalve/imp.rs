// SPDX-License-Identifier: MPL-2.0

//! The class: wires GObject and GStreamer to the parts that hold the state.

mod commands;
mod jobs;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use droidrelay_wire::{Command, RobotState, mqtt::session::Event};
use glib::subclass::Signal;
use gst::{prelude::*, subclass::prelude::*};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::{
    announcer::Announcer,
    broker::BrokerLink,
    cat::CAT,
    control::Control,
    flow::{Flow, Host},
    leases::{self, Held},
    memory::MemoryTrim,
    properties,
    settings::Settings,
    silence::EncoderWatch,
    surroundings::Surroundings,
    upstream::Upstream,
};
use crate::element::{
    files::within,
    io::Io,
    link,
    property::{filled, typed},
    worker::Worker,
};

/// How long READY to NULL waits for a job of ours.
const JOIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Exists from READY on; dropped on the way to NULL.
struct Running {
    io: Arc<Io>,
    link: Option<Arc<BrokerLink>>,
    around: Arc<Surroundings>,
}

pub struct MqttValve {
    /// Start of this element's monotonic clock.
    epoch: Instant,
    // Locks are never held together, nor across a push, post, notify or join.
    settings: Mutex<Settings>,
    control: Mutex<Control>,
    running: Mutex<Option<Running>>,
    flow: Flow,
    announcer: Announcer,
    /// Runs [`MqttValve::announce`]: events, notifications and messages, in the order of the
    /// changes.
    announcing: Arc<Worker<super::MqttValve>>,
    /// Runs [`MqttValve::stand_by`]: state changes, and what is kept.
    standing_by: Arc<Worker<super::MqttValve>>,
}

impl MqttValve {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn link(&self) -> Option<Arc<BrokerLink>> {
        self.running.lock().as_ref()?.link.clone()
    }

    /// What is around the valve; nothing before READY.
    fn around(&self) -> Arc<Surroundings> {
        let running = self.running.lock();
        running
            .as_ref()
            .map_or_else(Arc::default, |running| running.around.clone())
    }

    // ---- pads -----------------------------------------------------------------------------

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        use gst::EventView;

        gst::log!(CAT, obj = pad, "{:?}", event.type_());
        match event.view() {
            EventView::Caps(caps) => {
                let can_keep = self.flow.set_caps(caps.caps());
                if !can_keep {
                    self.warn("standby=hot keeps encoded media, and here comes raw video: warm instead. Put the valve behind the encoder");
                }
            }
            EventView::FlushStop(_) | EventView::Segment(_) => self.flow.forget(),
            // A source that fails ends its stream; ours goes on with the next try.
            EventView::Eos(_) if self.around().upstream.has_failed() => return false,
            EventView::Eos(_) => {}
            _ if event.is_serialized() && !event.is_sticky() && self.flow.is_closed() => {
                return true;
            }
            _ => {}
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    fn src_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        if let Some(publish) = link::parse_publish(&event) {
            gst::debug!(CAT, obj = pad, "the sink is {}", publish.state);
            let now = self.now();
            self.control.lock().publish(publish, now);
            self.announcing.wake();
            return true;
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    fn src_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        let obj = self.obj();
        if link::answer_valve(query, obj.upcast_ref(), || self.control.lock().claim()) {
            return true;
        }
        match query.view_mut() {
            gst::QueryViewMut::Latency(latency) => {
                let closed = self.flow.is_closed();
                let around = self.around();
                around.latency(latency, &self.flow.sinkpad, closed)
            }
            _ => gst::Pad::query_default(pad, Some(&*obj), query),
        }
    }

    /// What is behind the valve goes on without it; `peer` is, or was, linked to it.
    fn release_downstream(&self, peer: &gst::Pad) {
        let opening = self.control.lock().release();
        // Nobody downstream need understand it.
        let _ = peer.send_event(link::SessionEvent::Released(opening).event());
        self.announcing.wake();
    }

    /// What is behind the valve has changed.
    fn meet_downstream(&self) {
        if self.running.lock().is_some() {
            self.control.lock().announce_again();
            self.wake(true);
        }
    }

    // ---- states ---------------------------------------------------------------------------

    /// NULL to READY: checks, reads secrets, and starts connecting without waiting for it.
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings.lock().clone();
        let obj = self.obj();
        let failed = |error: String| gst::error_msg!(gst::ResourceError::Settings, ("{error}"));
        let io = Io::acquire().map_err(|err| failed(format!("cannot start a thread: {err}")))?;
        let (name, asked) = (obj.name(), settings.clone());
        let checked = within(io.handle(), &settings.files(), move || asked.check(&name));
        let config = checked.flatten().map_err(failed)?;

        {
            let mut control = self.control.lock();
            control.start(self.now());
            self.flow.set(control.gate.is_open());
        }
        let around = Arc::new(Surroundings::default());
        // The worker's job holds the elements: weak, for the ring would end under a lock of
        // GStreamer's when a pipeline that still plays is dropped.
        let waker = Arc::downgrade(&self.standing_by);
        let wake = move || {
            if let Some(waker) = waker.upgrade() {
                waker.wake();
            }
        };
        let mut upstream = Upstream::start(
            around.upstream.clone(),
            around.elements(wake.clone()),
            around.membership(wake),
            obj.upcast_ref(),
            &self.flow.sinkpad,
            self.inputs(),
        );
        for warning in upstream.take_warnings() {
            self.warn(&warning);
        }
        self.flow.set_keep(settings.keep(upstream.is_ours()));
        around.free_sinks(&self.flow.srcpad, self.flow.is_closed());
        let session = config.as_ref().map(|(_, id)| id.as_str().to_owned());
        let link = config.map(|config| {
            let topics = settings.topics();
            let announcing = self.announcing.clone();
            Arc::new(BrokerLink::connect(
                io.handle(),
                config,
                topics.clone(),
                move || announcing.wake(),
                self.on_event(topics.command),
            ))
        });
        self.settings.lock().begun(session);

        let timers = io.handle();
        self.announcing.start(&obj, timers.clone(), |valve| {
            let imp = valve.imp();
            gst::panic_to_error!(imp, None, { imp.announce() })
        });
        let (mut memory, mut encoder) = (MemoryTrim::default(), EncoderWatch::default());
        let job_around = around.clone();
        self.standing_by.start(&obj, timers.clone(), move |valve| {
            let imp = valve.imp();
            gst::panic_to_error!(imp, None, {
                imp.stand_by(&job_around, &mut upstream, &mut memory, &mut encoder)
            })
        });
        *self.running.lock() = Some(Running { io, link, around });
        self.wake(true);
        Ok(())
    }

    /// What the MQTT session calls, in the I/O thread.
    fn on_event(&self, command_topic: String) -> impl FnMut(Event) + Send + use<> + 'static {
        let weak = self.obj().downgrade();
        move |event| {
            let Some(valve) = weak.upgrade() else { return };
            let imp = valve.imp();
            gst::panic_to_error!(imp, (), { imp.on_mqtt(event, &command_topic) });
        }
    }

    /// READY to NULL: says goodbye where a broker is there, within a deadline.
    fn stop(&self) {
        let running = self.running.lock().take();
        let Some(Running { io, link, around }) = running else {
            return;
        };
        // The streams are down already. Nothing that was upstream may be touched from here on
        // but by the bin, which comes to it after us.
        if !self.standing_by.stop(JOIN_TIMEOUT) {
            gst::error!(
                CAT,
                imp = self,
                "what is upstream has not changed its state within {} ms: its thread is left behind",
                JOIN_TIMEOUT.as_millis()
            );
        }
        let obj = self.obj();
        obj.unset_element_flags(gst::ElementFlags::SOURCE);
        self.announcing.stop(JOIN_TIMEOUT);
        if let Some(link) = link.and_then(Arc::into_inner)
            && !link.leave(&io, || self.last_state(), JOIN_TIMEOUT)
        {
            gst::warning!(CAT, imp = self, "the MQTT session did not end in time");
        }
        self.control.lock().connected = false;
        self.announcer.connected(obj.upcast_ref(), false);
        self.flow.forget();
        around.restore_sinks();
    }

    /// The state that stays on the broker after a clean end.
    fn last_state(&self) -> RobotState {
        let standby = self.settings.lock().standby.as_str();
        let state = self.control.lock().robot_state(standby, self.now());
        state.into_ended()
    }

    /// What the state topic says, or would say; none of a valve that has never been started.
    fn state_text(&self) -> Option<String> {
        let standby = self.real_standby();
        let mut control = self.control.lock();
        control.started.then_some(())?;
        let state = control.robot_state(standby.as_str(), self.now());
        drop(control);
        serde_json::to_string(&state).ok()
    }

    fn stats(&self) -> gst::Structure {
        let reconnects = self.link().map_or(0, |link| link.reconnects());
        let control = self.control.lock();
        control.stats(self.flow.passed(), self.flow.dropped(), reconnects)
    }
}

impl Host for MqttValve {
    fn begins(&self) -> u64 {
        let opening = self.control.lock().flowing(self.now());
        self.announcing.wake();
        opening
    }

    fn want_keyframe(&self) {
        self.control.lock().keyframe_wanted = true;
        self.announcing.wake();
    }
}

#[glib::object_subclass]
impl ObjectSubclass for MqttValve {
    const NAME: &'static str = "GstMqttValve";
    type Type = super::MqttValve;
    type ParentType = gst::Element;

    fn with_class(klass: &Self::Class) -> Self {
        let pad = |name| {
            gst::Pad::builder_from_template(&klass.pad_template(name).unwrap())
                .flags(gst::PadFlags::PROXY_CAPS | gst::PadFlags::PROXY_ALLOCATION)
        };
        let sinkpad = pad("sink")
            .chain_function(|_, parent, buffer| {
                // What an open valve does cannot panic: it needs no guard, which costs more.
                match parent.and_then(|parent| parent.downcast_ref::<super::MqttValve>()) {
                    Some(valve) if valve.imp().flow.is_open() => valve.imp().flow.pass(buffer),
                    _ => MqttValve::catch_panic_pad_function(
                        parent,
                        || Err(gst::FlowError::Error),
                        |valve| valve.flow.chain(valve, buffer),
                    ),
                }
            })
            .event_function(|pad, parent, event| {
                MqttValve::catch_panic_pad_function(
                    parent,
                    || false,
                    |valve| valve.sink_event(pad, event),
                )
            })
            .build();
        let srcpad = pad("src")
            .event_function(|pad, parent, event| {
                MqttValve::catch_panic_pad_function(
                    parent,
                    || false,
                    |valve| valve.src_event(pad, event),
                )
            })
            .query_function(|pad, parent, query| {
                MqttValve::catch_panic_pad_function(
                    parent,
                    || false,
                    |valve| valve.src_query(pad, query),
                )
            })
            .build();
        MqttValve {
            epoch: Instant::now(),
            settings: Mutex::default(),
            control: Mutex::new(Control::new()),
            running: Mutex::default(),
            flow: Flow::new(sinkpad, srcpad),
            announcer: Announcer::default(),
            announcing: Worker::new(),
            standing_by: Worker::new(),
        }
    }
}

impl ObjectImpl for MqttValve {
    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.add_pad(&self.flow.sinkpad).unwrap();
        obj.add_pad(&self.flow.srcpad).unwrap();
        let weak = obj.downgrade();
        self.flow.srcpad.connect_linked(move |_, _| {
            if let Some(valve) = weak.upgrade() {
                valve.imp().meet_downstream();
            }
        });
        let weak = obj.downgrade();
        self.flow.srcpad.connect_unlinked(move |_, peer| {
            if let Some(valve) = weak.upgrade() {
                valve.imp().release_downstream(peer);
            }
        });
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(properties::specs);
        &PROPERTIES
    }

    fn signals() -> &'static [Signal] {
        fn action(
            name: &str,
            arguments: &[glib::Type],
            run: fn(&MqttValve, &[glib::Value]) -> Option<bool>,
        ) -> Signal {
            Signal::builder(name)
                .param_types(arguments.iter().copied())
                .return_type::<bool>()
                .action()
                .class_handler(move |args| {
                    let valve = args[0].get::<super::MqttValve>().ok()?;
                    Some(run(valve.imp(), &args[1..])?.to_value())
                })
                .build()
        }
        static SIGNALS: Lazy<Vec<Signal>> = Lazy::new(|| {
            let id = Option::<String>::static_type();
            vec![
                // Whether the valve is open, or closed, now.
                action("start", &[id, u32::static_type()], |valve, args| {
                    valve.local_start(filled(&args[0]), args[1].get().ok()?);
                    Some(!valve.flow.is_closed())
                }),
                action("stop", &[id], |valve, args| {
                    let id = filled(&args[0]);
                    valve.local_command(&Command::Stop { id });
                    Some(valve.flow.is_closed())
                }),
                // Whether there is such a place.
                action(
                    "report-fault",
                    &[String::static_type(), id],
                    |valve, args| {
                        let at = args[0].get::<Option<String>>().ok()??;
                        Some(valve.report_fault(&at, filled(&args[1])))
                    },
                ),
                // Whether it is open, so that there will be one.
                action("keyframe", &[], |valve, _| {
                    valve.local_command(&Command::Keyframe);
                    Some(!valve.flow.is_closed())
                }),
            ]
        });
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let name = pspec.name();
        if !name.starts_with("password") && !matches!(name, "broker" | "leases") {
            gst::info!(CAT, imp = self, "{name}: {:?}", value.transform::<String>());
        }
        match name {
            "drop" => self.set_drop(typed(value)),
            "leases" => match leases::read(value) {
                Ok(given) => self.take_up(given),
                Err(reason) => gst::warning!(CAT, imp = self, "leases not taken up: {reason}"),
            },
            _ => {
                self.settings.lock().set(name, value);
                if name == "broker" {
                    let shown = self.settings.lock().get(name).get::<String>().ok();
                    gst::info!(CAT, imp = self, "broker: {shown:?}");
                }
                if matches!(name, "offline-timeout" | "discovery-prefix") {
                    self.announcing.wake();
                }
                if matches!(name, "standby" | "source-timeout") {
                    self.wake(true);
                }
            }
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "drop" => self.flow.is_closed().to_value(),
            "connected" => self.control.lock().connected.to_value(),
            "stats" => self.stats().to_value(),
            "state" => self.state_text().to_value(),
            "leases" => {
                let leases = self.control.lock().gate.hand_over(self.now());
                let client_id = self.settings.lock().session.clone();
                leases::write(Held { leases, client_id }).to_value()
            }
            name => self.settings.lock().get(name),
        }
    }
}

impl GstObjectImpl for MqttValve {}

impl ElementImpl for MqttValve {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(super::doc::metadata);
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(properties::pad_templates);
        &TEMPLATES
    }

    fn send_event(&self, event: gst::Event) -> bool {
        // While upstream is stopped no source can send it. The caller holds the pipeline's state
        // lock, and a sink that prerolls with the EOS would wait for that in this very thread.
        if event.type_() == gst::EventType::Eos && self.around().upstream.want_eos() {
            self.standing_by.wake();
            return true;
        }
        self.parent_send_event(event)
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        gst::trace!(CAT, imp = self, "{transition:?}");
        let around = self.around();
        match transition {
            gst::StateChange::NullToReady => self.start().map_err(|error| {
                self.post_error_message(error);
                gst::StateChangeError
            })?,
            gst::StateChange::ReadyToPaused => around.lead(),
            gst::StateChange::PausedToReady => {
                if let Some(peer) = self.flow.srcpad.peer() {
                    self.release_downstream(&peer);
                }
            }
            _ => {}
        }
        let success = self.parent_change_state(transition)?;
        // Upstream follows.
        self.standing_by.wake();
        match transition {
            gst::StateChange::ReadyToPaused => {
                // What downstream could not hear while its pads were not active.
                self.control.lock().announce_again();
                self.wake(true);
                return Ok(around.to_paused(success, self.flow.is_closed()));
            }
            gst::StateChange::PlayingToPaused => {
                return Ok(around.to_paused(success, self.flow.is_closed()));
            }
            gst::StateChange::PausedToReady => {
                around.leave_to_bin();
                self.flow.forget();
                let control = self.control.lock();
                self.flow.set(control.gate.is_open());
            }
            gst::StateChange::ReadyToNull => self.stop(),
            _ => {}
        }
        Ok(success)
    }
}

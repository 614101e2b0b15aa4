// SPDX-License-Identifier: MPL-2.0

//! What commands the valve: MQTT, the application, and leases of another valve.

use std::time::Duration;

use droidrelay_wire::{
    Command, FaultKind,
    mqtt::session::{Event, Message},
    words::{
        command,
        fault::Place,
        gate::{Origin, Outcome},
    },
};
use gst::subclass::prelude::*;

use super::MqttValve;
use crate::mqttvalve::{age, cat::CAT, control::Control, leases::Held};

impl MqttValve {
    /// The one door in: every command, wherever it comes from, ends here. `correlation`: what its
    /// sender knows it by, where that is not the id in it.
    pub(super) fn command(&self, command: &Command, origin: Origin, correlation: Option<&str>) {
        let lease = self.settings.lock().lease;
        let outcome = self.change(|control, now| {
            let outcome = control.gate.apply(command, origin, lease, now);
            if !matches!(outcome, Outcome::Refused(_)) {
                control.obeyed(command.to_payload(), correlation.or(command.id()));
                control.hurry |= matches!(command, Command::Start { .. });
            }
            outcome
        });
        gst::debug!(CAT, imp = self, "{command:?} from {origin:?}: {outcome:?}");
        if let Outcome::Refused(reason) = outcome {
            gst::warning!(CAT, imp = self, "command refused: {reason}");
        }
    }

    pub(super) fn local_command(&self, command: &Command) {
        self.command(command, Origin::Local, None);
    }

    /// What `act` makes of the gate, the data path follows: in the same order, under one lock.
    pub(super) fn change(&self, act: impl FnOnce(&mut Control, Duration) -> Outcome) -> Outcome {
        let now = self.now();
        let mut control = self.control.lock();
        let outcome = act(&mut control, now);
        let changed = control.decided(outcome.clone(), now);
        if changed {
            self.flow.set(control.gate.is_open());
        }
        drop(control);
        self.wake(changed);
        outcome
    }

    /// There is something to announce, and where the gate has `changed`, to follow.
    pub(super) fn wake(&self, changed: bool) {
        self.announcing.wake();
        if changed {
            self.standing_by.wake();
        }
    }

    pub(super) fn refuse(&self, reason: String) {
        gst::warning!(CAT, imp = self, "command refused: {reason}");
        self.control.lock().refuse(reason);
        self.announcing.wake();
    }

    /// Goes on with what another valve, or this one, has held.
    pub(super) fn take_up(&self, given: Held) {
        self.change(|control, now| control.gate.take_up(given.leases, now));
        if self.running.lock().is_none() {
            let mut settings = self.settings.lock();
            settings.resume = true;
            settings.session = given.client_id.or(settings.session.take());
        }
    }

    /// Action signal `report-fault`; false where the place is not one.
    pub(super) fn report_fault(&self, at: &str, reason: Option<String>) -> bool {
        let at = Place::from(at);
        if let Place::Other(at) = &at {
            gst::warning!(CAT, imp = self, "report-fault: there is no place {at:?}");
            return false;
        }
        if self.control.lock().report_fault(at, reason) {
            self.announcing.wake();
        }
        true
    }

    /// The local switch, property `drop`.
    pub(super) fn set_drop(&self, drop: bool) {
        let lease = Some(Duration::ZERO);
        let start = Command::Start { id: None, lease };
        self.local_command(&if drop { Command::stop() } else { start });
    }

    /// Action signal `start`.
    pub(super) fn local_start(&self, id: Option<String>, lease: u32) {
        if let Some(refusal) = id.as_deref().and_then(|id| command::check_id(id).err()) {
            self.refuse(refusal.to_string());
        } else {
            let lease = (lease > 0).then(|| Duration::from_secs(lease.into()));
            self.local_command(&Command::Start { id, lease });
        }
    }

    pub(super) fn on_mqtt(&self, event: Event, command_topic: &str) {
        match event {
            Event::Up(broker) => {
                let lacks = broker.lacks();
                gst::info!(
                    CAT,
                    imp = self,
                    "connected to the broker with MQTT {} and subscribed",
                    broker.version
                );
                let mut control = self.control.lock();
                control.link(true, self.now());
                let news = control.limits(lacks.clone());
                drop(control);
                for lack in lacks.iter().filter(|_| news) {
                    gst::warning!(CAT, imp = self, "{lack}");
                }
            }
            Event::Down(fault) => {
                gst::warning!(CAT, imp = self, "no MQTT session: {fault}");
                if fault.kind == FaultKind::TakenOver
                    && let Some(link) = self.link()
                {
                    link.taken();
                }
                let mut control = self.control.lock();
                control.link(false, self.now());
                control.note(Place::Broker, fault.text);
            }
            Event::Message(message) if message.topic == command_topic => {
                return self.on_message(&message);
            }
            Event::Message(status) => {
                gst::debug!(CAT, imp = self, "Home Assistant has a status");
                if !self
                    .link()
                    .is_some_and(|link| link.home_assistant(&status.payload))
                {
                    return;
                }
            }
            Event::Refused(fault) => {
                gst::warning!(CAT, imp = self, "{fault}");
                self.control.lock().note(Place::Broker, fault.text);
            }
        }
        self.announcing.wake();
    }

    pub(super) fn on_message(&self, message: &Message) {
        gst::log!(
            CAT,
            imp = self,
            "message of {} bytes on {}, retained: {}",
            message.payload.len(),
            message.topic,
            message.retained
        );
        if message.payload.is_empty() {
            // So a retained message is taken back: nobody asks for anything.
            return;
        }
        let accept_retained = self.settings.lock().accept_retained;
        match Command::parse(&message.payload) {
            Err(refusal) => self.refuse(refusal.to_string()),
            Ok(Command::Start { .. }) if message.may_be_old && let Err(reason) = age::check(&message.payload, age::now()) => {
                self.refuse(reason);
            }
            Ok(_) if message.retained && !accept_retained => self.refuse(
                "it is a retained message, which may be old: publish commands without the retain flag, or set accept-retained"
                    .into(),
            ),
            Ok(command) => self.command(&command, Origin::Mqtt, message.correlation_text()),
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! What all requests share, and the way from them to the broker.

use std::{
    collections::HashSet,
    future::Future,
    mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use droidrelay_wire::{
    Command, FaultKind,
    mqtt::session::{Properties, Session},
    words::topics::availability_topic,
};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::{
    auth::{Auth, Credentials, Right, Role, User},
    config::Config,
    demand::{self, Demands, Questions},
    failure::Failure,
    fleet::Fleet,
    grants::Grants,
    metrics::Metrics,
    requests::Requests,
    robots::{Robot, shares_topic},
    share::{Revoked, Shares},
    view::ON_BEHALF,
    views::ViewerSessions,
    webhook::Webhooks,
};

/// The bridge's state.
pub struct Bridge {
    pub auth: Auth,
    pub fleet: Arc<Fleet>,
    session: Session,
    pub metrics: Arc<Metrics>,
    pub views: ViewerSessions,
    pub demands: Demands,
    pub requests: Requests,
    pub questions: Questions,
    pub grants: Grants,
    is_asked: AtomicBool,
    pub mediamtx: demand::Settings,
    /// Where the invitations to robots are.
    pub enroll_folder: PathBuf,
    /// Whose word on who asks is believed.
    pub proxies: Vec<IpNet>,
    /// How long a `start` stays good on its way to the robot.
    pub start_expiry: Duration,
    ack_timeout: Duration,
    closing: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Bridge {
    /// Starts the MQTT session on `runtime`; does not wait for the broker.
    pub fn start(config: Config, runtime: &Handle) -> Result<Arc<Self>, String> {
        let auth = Auth::new(config.users, config.failures)?;
        let mut tasks = JoinSet::new();
        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(
            config.directory,
            config.watch,
            config.mqtt.client_id.clone(),
            Shares::new(config.share_key),
            Webhooks::start(config.webhooks, &metrics, &mut tasks, runtime),
        ));
        let listener = fleet.clone();
        Ok(Arc::new(Bridge {
            auth,
            session: Session::spawn(runtime, config.mqtt, move |event| listener.apply(event)),
            fleet,
            metrics,
            views: ViewerSessions::default(),
            demands: Demands::default(),
            requests: Requests::default(),
            questions: Questions::default(),
            grants: Grants::default(),
            is_asked: AtomicBool::new(false),
            mediamtx: config.mediamtx,
            enroll_folder: config.enroll.folder,
            proxies: config.proxies,
            start_expiry: config.start_expiry,
            ack_timeout: config.ack_timeout,
            closing: watch::Sender::new(false),
            tasks: Mutex::new(tasks),
        }))
    }

    /// A try to reach the broker that waits for its turn begins now, with the files as they are.
    pub fn hurry(&self) {
        self.session.hurry();
    }

    /// Knows these users and no others from now on.
    pub fn replace_users(&self, users: Vec<User>) {
        let robots = |users: &mut dyn Iterator<Item = &User>| -> HashSet<String> {
            let robots = users.filter(|user| user.role == Role::Robot);
            robots
                .filter_map(|user| user.robots.clone())
                .flatten()
                .collect()
        };
        let before = self.auth.users().borrow().clone();
        let before = robots(&mut before.iter().map(Arc::as_ref));
        let now = robots(&mut users.iter());
        let mut removed = self.fleet.removed();
        removed.extend(before);
        removed.retain(|name| !now.contains(name));
        self.auth.replace(users);
        self.fleet.set_removed(removed);
    }

    /// Makes requests that wait answer at once.
    pub fn begin_close(&self) {
        self.closing.send_replace(true);
    }

    /// True from [`Bridge::begin_close`] on.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Leaves the broker cleanly where no request is left.
    pub async fn close(self: Arc<Self>) {
        let mut tasks = mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        self.views.end_all(self.fleet.now().wall);
        if let Some(bridge) = Arc::into_inner(self) {
            bridge.session.stop(Vec::new()).await;
        }
    }

    /// Runs something beside the requests, until the bridge ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        // What has ended needs no owner.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Whether these are the bridge's own, by which it asks MediaMTX's API.
    pub fn is_own(&self, credentials: Option<Credentials>) -> bool {
        let own = self.mediamtx.own.as_ref().zip(credentials);
        // The bridge asks the API again and again: if anybody is asked who that is, it is here.
        self.is_asked.store(true, Ordering::Relaxed);
        own.is_some_and(|(own, credentials)| own.is(&credentials))
    }

    /// Whether MediaMTX asks here who may.
    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// The robot of this name, where the user may do this with it.
    pub fn robot(&self, user: &User, right: Right, name: &str) -> Result<Robot, Failure> {
        user.check(right, name)?;
        let robot = self.fleet.directory.robot(name);
        robot.ok_or_else(|| Failure::not_found(format!("there is no robot {name:?}")))
    }

    /// Sends a command and waits for the broker's acknowledgement; 503 where it does not come.
    pub async fn command(&self, robot: &Robot, command: &Command) -> Result<(), Failure> {
        let properties = Properties {
            expiry: matches!(command, Command::Start { .. }).then_some(self.start_expiry),
            ..Properties::default()
        };
        let payload = match command {
            Command::Start { .. } if !self.fleet.speaks_mqtt_5() => {
                command.to_payload_sent(self.fleet.now().wall)
            }
            _ => command.to_payload(),
        };
        let published = self.publish(&robot.topic, payload, properties).await;
        self.metrics.command(word(command), &published);
        if published.is_ok() {
            self.fleet.sent_command();
        }
        published
    }

    /// Makes the broker keep this as the topic's value.
    pub async fn retain(&self, topic: &str, payload: impl Into<Vec<u8>>) -> Result<(), Failure> {
        let retained = Properties {
            retain: true,
            ..Properties::default()
        };
        self.publish(topic, payload, retained).await
    }

    /// As [`Bridge::retain`], in place of a robot that polls.
    pub async fn retain_on_behalf(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
    ) -> Result<(), Failure> {
        let retained = Properties {
            retain: true,
            correlation: Some(ON_BEHALF.to_vec()),
            ..Properties::default()
        };
        self.publish(topic, payload, retained).await
    }

    /// Says of a robot that polls whether it is there, as its last will would.
    pub async fn announce(&self, robot: &Robot, payload: &str) -> Result<(), Failure> {
        let topic = availability_topic(&robot.topic);
        self.retain_on_behalf(&topic, payload).await
    }

    /// Makes the broker keep which links to look at the robot were revoked.
    pub async fn keep_revoked(&self, robot: &Robot, revoked: &Revoked) -> Result<(), Failure> {
        let payload = serde_json::to_vec(revoked).unwrap_or_default();
        self.retain(&shares_topic(&robot.topic), payload).await
    }

    /// Sends to the broker what it gives back behind all that it had retained: see
    /// [`Fleet::settled`]. Where it refuses that, a time has to do.
    pub async fn mark(&self) -> Result<(), Failure> {
        let (topic, mark) = self.fleet.mark();
        let properties = Properties {
            correlation: Some(mark),
            ..Properties::default()
        };
        let answer = self.session.publish(&topic, Vec::new(), properties);
        match timeout_at(self.broker_deadline(), answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) if fault.kind == FaultKind::Offline => {
                Err(Failure::unavailable(fault.text))
            }
            Ok(Err(fault)) => {
                self.fleet.do_without_mark();
                warn!("bridges need the right to write {topic}: {fault}");
                Ok(())
            }
            Err(_) => Err(Failure::unavailable("it does not answer")),
        }
    }

    async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        properties: Properties,
    ) -> Result<(), Failure> {
        let deadline = self.broker_deadline();
        self.check_link(deadline).await?;
        let answer = self.session.publish(topic, payload, properties);
        match timeout_at(deadline, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => Err(Failure::unavailable(err.to_string())),
            Err(_) => Err(Failure::unavailable(format!(
                "the MQTT broker has not acknowledged within {} s: the command may still arrive",
                self.ack_timeout.as_secs()
            ))),
        }
    }

    /// 503 where the broker is out of reach; waits for the first try to connect.
    pub async fn check_link(&self, deadline: Instant) -> Result<(), Failure> {
        match self.fleet.link_decided(deadline).await.fault() {
            None => Ok(()),
            Some(reason) => Err(Failure::unavailable(reason)),
        }
    }

    /// How long the broker is waited for.
    pub fn broker_deadline(&self) -> Instant {
        Instant::now() + self.ack_timeout
    }
}

/// The command's name, as those who look at the bridge know it.
pub fn word(command: &Command) -> &'static str {
    match command {
        Command::Start { .. } => "start",
        Command::Stop { .. } => "stop",
        Command::Keyframe => "keyframe",
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Where players find the streams: URL templates, without credentials.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::robots::{PLACEHOLDER, Robot};

/// URL templates of the players; `{path}` and `{robot}` are filled in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    pub rtsp: Option<WatchUrl>,
    pub hls: Option<WatchUrl>,
    pub webrtc: Option<WatchUrl>,
    /// What the bridge hands on itself.
    #[serde(skip)]
    pub own: Own,
}

/// What the page asks the bridge for, and not the media server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own {
    pub whep: bool,
    pub hls: bool,
}

impl Watch {
    /// The host that the first of them names, without port.
    pub fn host(&self) -> Option<String> {
        let url = [&self.rtsp, &self.webrtc, &self.hls]
            .into_iter()
            .flatten()
            .next()?;
        let (_, rest) = url.0.split_once("://")?;
        let authority = rest.split('/').next()?;
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
            _ => authority,
        };
        (!host.is_empty() && !host.contains('{')).then(|| host.to_owned())
    }

    /// Where the page begins a WebRTC session with the robot, relative to itself.
    pub fn whep(&self, robot: &Robot) -> Option<String> {
        self.own.whep.then(|| format!("robots/{}/whep", robot.name))
    }

    /// Where the page finds the robot's playlist, relative to itself.
    pub fn playlist(&self, robot: &Robot) -> Option<String> {
        self.own
            .hls
            .then(|| format!("robots/{}/hls/index.m3u8", robot.name))
    }

    /// The URLs of one robot's stream, by the way to watch it.
    pub fn fill(&self, robot: &Robot) -> BTreeMap<&'static str, String> {
        let ways = [
            ("rtsp", &self.rtsp),
            ("hls", &self.hls),
            ("webrtc", &self.webrtc),
        ];
        let filled = |(way, url): (_, &Option<WatchUrl>)| Some((way, url.as_ref()?.fill(robot)));
        ways.into_iter().filter_map(filled).collect()
    }
}

/// One of them, which holds no credentials: it is shown to viewers.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct WatchUrl(String);

impl WatchUrl {
    /// As it stands in the configuration.
    pub fn template(&self) -> &str {
        &self.0
    }

    pub fn fill(&self, robot: &Robot) -> String {
        self.0
            .replace("{path}", &robot.path)
            .replace(PLACEHOLDER, &robot.name)
    }
}

impl TryFrom<String> for WatchUrl {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        let (_, rest) = url.split_once("://").ok_or(
            "a watch URL begins with its scheme, for example rtsp://media.example:8554/{path}",
        )?;
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.contains('@') {
            return Err("a watch URL is shown to viewers: take the credentials out of it".into());
        }
        Ok(WatchUrl(url))
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Who may do what, and what they show.

use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::Secret;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::hash::Hash;
use crate::failure::Failure;

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks at robots, starts and stops their streams.
    Viewer,
    /// A robot: asks what is wanted of it, tells its state, publishes its stream; nothing else.
    Robot,
    /// The media server: asks whether others may, tells who waits and who looks; nothing else.
    MediaMtx,
    /// Everything, with every robot.
    Admin,
}

/// What somebody may do with a robot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// See its state.
    Look,
    /// Start and stop its stream.
    Command,
    /// Make and revoke links to look at it.
    Share,
    /// Speak as the robot, publish its stream.
    Be,
}

/// One who may come in.
#[derive(Debug)]
pub struct User {
    pub name: String,
    pub role: Role,
    /// The robots of a viewer or robot; `None`: all.
    pub robots: Option<Vec<String>>,
    /// For Basic.
    pub password: Option<Hash>,
    /// For Bearer.
    pub token: Option<Hash>,
}

impl User {
    pub fn may(&self, right: Right, robot: &str) -> bool {
        let has_right = match self.role {
            Role::Admin => true,
            Role::Viewer => matches!(right, Right::Look | Right::Command),
            Role::Robot => right == Right::Be,
            Role::MediaMtx => false,
        };
        has_right
            && self
                .robots
                .as_ref()
                .is_none_or(|robots| robots.iter().any(|name| name == robot))
    }

    /// Has a right to any robot at all, so that sums over all of them are no secret.
    pub fn looks(&self) -> bool {
        matches!(self.role, Role::Viewer | Role::Admin)
    }

    pub fn check(&self, right: Right, robot: &str) -> Result<(), Failure> {
        if self.may(right, robot) {
            return Ok(());
        }
        let what = match right {
            Right::Look => "look at",
            Right::Command => "command",
            Right::Share => "share",
            Right::Be => "speak as",
        };
        Err(Failure::forbidden(format!(
            "user {:?} has no right to {what} robot {robot:?}",
            self.name
        )))
    }
}

/// What somebody shows to come in.
#[derive(Clone)]
pub enum Credentials {
    /// User name and password.
    Basic(String, Secret),
    /// A token.
    Bearer(Secret),
}

impl Credentials {
    /// Whether both are the same, in constant time for the secret.
    pub fn is(&self, other: &Credentials) -> bool {
        let same = |one: &Secret, other: &Secret| {
            bool::from(one.expose().as_bytes().ct_eq(other.expose().as_bytes()))
        };
        match (self, other) {
            (Credentials::Basic(name, one), Credentials::Basic(other_name, other)) => {
                name == other_name && same(one, other)
            }
            (Credentials::Bearer(one), Credentials::Bearer(other)) => same(one, other),
            _ => false,
        }
    }

    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return (!rest.is_empty()).then(|| Credentials::Bearer(rest.into()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = Secret::new(String::from_utf8(STANDARD.decode(rest).ok()?).ok()?);
        let (name, password) = pair.expose().split_once(':')?;
        Some(Credentials::Basic(name.to_owned(), password.into()))
    }
}

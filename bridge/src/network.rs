// SPDX-License-Identifier: MPL-2.0

//! An address, or all that begin with the same bits.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::Deserialize;

/// By which name the bridge asks other servers.
pub const USER_AGENT: &str = concat!("droidrelay-bridge/", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .or_else(|_| text.parse().map(|address: IpAddr| address.into()))
            .map(Network)
            .map_err(|_| {
                format!(
                    "{text:?} is neither an address nor a network: write for example \"127.0.0.1\" or \"10.0.0.0/8\""
                )
            })
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

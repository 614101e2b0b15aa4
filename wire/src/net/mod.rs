// SPDX-License-Identifier: MPL-2.0

//! The way to a server, whatever is spoken with it: its URL, its addresses, TCP, TLS, HTTP.

pub mod connect;
#[cfg(feature = "http")]
pub mod http;
pub mod tls;
pub mod url;

// SPDX-License-Identifier: MPL-2.0

//! What reaches a server, whatever is spoken with it.

pub mod tls;

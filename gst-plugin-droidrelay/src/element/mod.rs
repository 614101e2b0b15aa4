// SPDX-License-Identifier: MPL-2.0

//! What both elements are made of; knows neither of them.

pub mod controls;
pub mod credentials;
pub mod files;
pub mod io;
pub mod keyunit;
pub mod link;
pub mod neighbours;
pub mod network;
pub mod property;
pub mod worker;

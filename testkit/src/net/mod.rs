// SPDX-License-Identifier: MPL-2.0

//! Networks that can be made bad, and HTTP.

pub mod crowd;
pub mod http;
pub mod netns;
pub mod proxy;
pub mod shaped_link;

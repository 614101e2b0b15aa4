// SPDX-License-Identifier: MPL-2.0

//! Launch files: read, their variables replaced, their pipelines built; an element of our own.

mod commandsrc;
pub mod launchfile;
pub(crate) mod opening;
pub(crate) mod pipeline;
pub(crate) mod source;
pub(crate) mod variables;

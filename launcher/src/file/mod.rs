// SPDX-License-Identifier: MPL-2.0

//! Launch files: read, their variables replaced, their pipelines built.

pub mod launchfile;
pub(crate) mod pipeline;
pub(crate) mod source;
pub(crate) mod variables;

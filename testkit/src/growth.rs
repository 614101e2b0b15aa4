// SPDX-License-Identifier: MPL-2.0

//! Whether a process that does the same again and again uses ever more.

use anyhow::{Context, Result, ensure};

use crate::{
    journal::DEADLINE,
    process::poll,
    usage::{Memory, descriptors, threads},
};

/// What a closed robot uses.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub threads: usize,
    pub descriptors: usize,
    pub memory: Memory,
}

impl Usage {
    pub fn of(id: u32) -> Result<Self> {
        Ok(Usage {
            threads: threads(id)?,
            descriptors: descriptors(id)?,
            memory: Memory::of(id)?,
        })
    }
}

type Column = (&'static str, fn(&Usage) -> u64);

const COLUMNS: [Column; 4] = [
    ("anonymous KiB", |usage| usage.memory.anonymous),
    ("PSS KiB", |usage| usage.memory.pss),
    ("threads", |usage| usage.threads as u64),
    ("descriptors", |usage| usage.descriptors as u64),
];

/// The middle one.
fn median(usages: &[Usage], of: impl Fn(&Usage) -> u64) -> u64 {
    let mut values: Vec<u64> = usages.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// What came of many rounds: three thirds.
pub struct Trend<'a> {
    usages: &'a [Usage],
}

impl<'a> Trend<'a> {
    /// Of three rounds or more.
    pub fn of(usages: &'a [Usage]) -> Result<Self> {
        ensure!(usages.len() >= 3, "{} rounds are too few", usages.len());
        Ok(Trend { usages })
    }

    /// A third of the rounds warms up.
    fn before(&self) -> &[Usage] {
        let third = self.usages.len() / 3;
        &self.usages[third..self.usages.len() - third]
    }

    fn after(&self) -> &[Usage] {
        &self.usages[self.usages.len() - self.usages.len() / 3..]
    }

    /// A line for each thing that is counted.
    pub fn text(&self) -> String {
        let lines = COLUMNS.iter().map(|(name, of)| {
            format!(
                "{} rounds: {name} {} after the first, then {}, {}\n",
                self.usages.len(),
                of(&self.usages[0]),
                median(self.before(), of),
                median(self.after(), of)
            )
        });
        lines.collect()
    }

    /// The last third has used no more than the one in between, but for `slack` KiB of memory,
    /// which come and go; the process `id` has no more threads and descriptors now.
    pub fn is_flat(&self, id: u32, slack: u64) -> Result<()> {
        let before = self.before();
        let most = |of: fn(&Usage) -> usize| before.iter().map(of).max().unwrap_or_default();
        let most_threads = most(|usage| usage.threads);
        let most_descriptors = most(|usage| usage.descriptors);
        // What a round leaves behind is still on its way out when the state says idle.
        poll(DEADLINE, || {
            let now = Usage::of(id).ok()?;
            (now.threads <= most_threads && now.descriptors <= most_descriptors).then_some(())
        })
        .with_context(|| format!("{before:?}, then {:?}", Usage::of(id)))?;
        // PSS depends on who else has mapped the libraries.
        let anonymous = |usage: &Usage| usage.memory.anonymous;
        let (warm, last) = (median(before, anonymous), median(self.after(), anonymous));
        ensure!(last < warm + slack, "from {warm} to {last} KiB");
        Ok(())
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Chance that can be had again: the same seed gives the same throws.

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Its state is never zero; seeds that are close give throws that are not.
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn throw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From zero to `limit`, which it does not reach.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The upper bits are the better ones; what is uneven by the division shows nowhere.
        (self.throw() >> 16) % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_throws_and_each_number_comes() {
        let throws = |seed| {
            let mut dice = Dice::new(seed);
            (0..1000).map(|_| dice.below(6)).collect::<Vec<_>>()
        };
        assert_eq!(throws(7), throws(7));
        assert_ne!(throws(7), throws(8));
        for number in 0..6 {
            let count = throws(7).iter().filter(|throw| **throw == number).count();
            assert!((100..250).contains(&count), "{number}: {count}");
        }
    }
}

//! CRC-64 of ISO 3309, as tar-split keeps it of each file.

/// The polynomial, reflected.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

/// What a byte does to the sum with so many bytes behind it: eight are taken at a time.
const TABLES: [[u64; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut at = 0;
    while at < 256 {
        let mut value = at as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][at] = value;
        at += 1;
    }
    let mut behind = 1;
    while behind < 8 {
        let mut at = 0;
        while at < 256 {
            let before = tables[behind - 1][at];
            tables[behind][at] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            at += 1;
        }
        behind += 1;
    }
    tables
};

/// A sum of the bytes so far.
pub(super) struct Crc(u64);

impl Default for Crc {
    fn default() -> Crc {
        Crc(u64::MAX)
    }
}

impl Crc {
    pub fn update(&mut self, bytes: &[u8]) {
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            let all = (self.0 ^ u64::from_le_bytes(*eight)).to_le_bytes();
            self.0 = TABLES[7][usize::from(all[0])]
                ^ TABLES[6][usize::from(all[1])]
                ^ TABLES[5][usize::from(all[2])]
                ^ TABLES[4][usize::from(all[3])]
                ^ TABLES[3][usize::from(all[4])]
                ^ TABLES[2][usize::from(all[5])]
                ^ TABLES[1][usize::from(all[6])]
                ^ TABLES[0][usize::from(all[7])];
        }
        for byte in rest {
            self.0 = TABLES[0][usize::from((self.0 as u8) ^ byte)] ^ (self.0 >> 8);
        }
    }

    pub fn sum(&self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_one_byte_after_the_other(bytes in prop::collection::vec(any::<u8>(), 0..100), cut: usize) {
            let mut one = Crc::default();
            for byte in &bytes {
                one.update(&[*byte]);
            }
            let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
            let mut two = Crc::default();
            two.update(first);
            two.update(second);
            prop_assert_eq!(one.sum(), two.sum());
        }
    }
}

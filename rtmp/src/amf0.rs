// SPDX-License-Identifier: MPL-2.0

//! Action Message Format 0: the values in commands and script data.

/// How deep objects may nest in what a server sends.
const MAX_DEPTH: usize = 16;
/// How many values one message may hold.
const MAX_VALUES: usize = 4096;

/// Type markers, AMF 0 section 2.1.
mod marker {
    pub const NUMBER: u8 = 0x00;
    pub const BOOLEAN: u8 = 0x01;
    pub const STRING: u8 = 0x02;
    pub const OBJECT: u8 = 0x03;
    pub const NULL: u8 = 0x05;
    pub const UNDEFINED: u8 = 0x06;
    pub const REFERENCE: u8 = 0x07;
    pub const ECMA_ARRAY: u8 = 0x08;
    pub const OBJECT_END: u8 = 0x09;
    pub const STRICT_ARRAY: u8 = 0x0a;
    pub const DATE: u8 = 0x0b;
    pub const LONG_STRING: u8 = 0x0c;
    pub const UNSUPPORTED: u8 = 0x0d;
    pub const XML_DOCUMENT: u8 = 0x0f;
    pub const TYPED_OBJECT: u8 = 0x10;
}

type Members = Vec<(String, Value)>;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    Boolean(bool),
    String(String),
    Object(Members),
    EcmaArray(Members),
    StrictArray(Vec<Value>),
    Null,
    Undefined,
}

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_number(&self) -> Option<f64> {
        match self {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The member `name` of an object or ECMA array.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Object(members) | Value::EcmaArray(members) => members
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Number(number) => {
                out.push(marker::NUMBER);
                out.extend(number.to_be_bytes());
            }
            Value::Boolean(boolean) => out.extend([marker::BOOLEAN, u8::from(*boolean)]),
            Value::String(text) => encode_string(out, text),
            Value::Object(members) => {
                out.push(marker::OBJECT);
                encode_members(out, members);
            }
            Value::EcmaArray(members) => {
                out.push(marker::ECMA_ARRAY);
                out.extend((members.len() as u32).to_be_bytes());
                encode_members(out, members);
            }
            Value::StrictArray(values) => {
                out.push(marker::STRICT_ARRAY);
                out.extend((values.len() as u32).to_be_bytes());
                values.iter().for_each(|value| value.encode(out));
            }
            Value::Null => out.push(marker::NULL),
            Value::Undefined => out.push(marker::UNDEFINED),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.into())
    }
}

/// Writes `text` as a string, or as a long string from 65,536 bytes on (sections 2.4, 2.14).
pub fn encode_string(out: &mut Vec<u8>, text: &str) {
    match u16::try_from(text.len()) {
        Ok(length) => {
            out.push(marker::STRING);
            out.extend(length.to_be_bytes());
        }
        Err(_) => {
            out.push(marker::LONG_STRING);
            out.extend((text.len() as u32).to_be_bytes());
        }
    }
    out.extend(text.as_bytes());
}

fn encode_members(out: &mut Vec<u8>, members: &Members) {
    for (key, value) in members {
        out.extend((key.len() as u16).to_be_bytes());
        out.extend(key.as_bytes());
        value.encode(out);
    }
    out.extend([0, 0, marker::OBJECT_END]);
}

/// Reads the values of one message, up to its end or to the first that cannot be read:
/// servers append what they like behind the arguments that count.
pub fn decode(bytes: &[u8]) -> Vec<Value> {
    let mut decoder = Decoder {
        bytes,
        values_left: MAX_VALUES,
    };
    let mut values = Vec::new();
    while let Some(value) = decoder.value(0) {
        values.push(value);
    }
    values
}

struct Decoder<'a> {
    bytes: &'a [u8],
    values_left: usize,
}

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn short_string(&mut self) -> Option<String> {
        let length = u16::from_be_bytes(self.array()?);
        self.text(usize::from(length))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        Some(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u32::from_be_bytes(self.array()?)).ok()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.values_left = self.values_left.checked_sub(1)?;
        let [marker] = self.array()?;
        Some(match marker {
            marker::NUMBER => Value::Number(f64::from_be_bytes(self.array()?)),
            marker::BOOLEAN => Value::Boolean(self.array::<1>()? != [0]),
            marker::STRING => Value::String(self.short_string()?),
            marker::LONG_STRING | marker::XML_DOCUMENT => {
                let length = self.length()?;
                Value::String(self.text(length)?)
            }
            marker::OBJECT => Value::Object(self.members(depth)?),
            marker::TYPED_OBJECT => {
                self.short_string()?;
                Value::Object(self.members(depth)?)
            }
            marker::ECMA_ARRAY => {
                // The count is a hint; the end marker rules (section 2.10).
                self.length()?;
                Value::EcmaArray(self.members(depth)?)
            }
            marker::STRICT_ARRAY => {
                let length = self.length()?;
                let mut values = Vec::new();
                for _ in 0..length {
                    values.push(self.value(depth + 1)?);
                }
                Value::StrictArray(values)
            }
            marker::DATE => {
                let time = f64::from_be_bytes(self.array()?);
                self.take(2)?;
                Value::Number(time)
            }
            marker::REFERENCE => {
                self.take(2)?;
                Value::Undefined
            }
            marker::NULL => Value::Null,
            marker::UNDEFINED | marker::UNSUPPORTED => Value::Undefined,
            _ => return None,
        })
    }

    fn members(&mut self, depth: usize) -> Option<Members> {
        let mut members = Members::new();
        loop {
            let key = self.short_string()?;
            if key.is_empty() && self.bytes.first() == Some(&marker::OBJECT_END) {
                self.take(1)?;
                return Some(members);
            }
            members.push((key, self.value(depth + 1)?));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Noise;
    use super::*;

    fn bytes_of(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.encode(&mut out);
        out
    }

    #[test]
    fn values_are_written_as_the_specification_says() {
        assert_eq!(
            bytes_of(&Value::Object(vec![
                ("app".into(), "live".into()),
                ("n".into(), Value::Number(1.0))
            ])),
            b"\x03\x00\x03app\x02\x00\x04live\x00\x01n\x00\x3f\xf0\0\0\0\0\0\0\x00\x00\x09"
        );
        assert_eq!(
            bytes_of(&Value::EcmaArray(vec![(
                "stereo".into(),
                Value::Boolean(true)
            )])),
            b"\x08\0\0\0\x01\0\x06stereo\x01\x01\0\0\x09"
        );
        assert_eq!(
            bytes_of(&Value::StrictArray(vec!["hvc1".into()])),
            b"\x0a\0\0\0\x01\x02\0\x04hvc1"
        );
    }

    #[test]
    fn every_value_reads_back() {
        let values = vec![
            Value::Number(-1.5),
            Value::Boolean(false),
            Value::String("ä".into()),
            Value::String("x".repeat(70_000)),
            Value::Object(vec![("o".into(), Value::Object(vec![]))]),
            Value::EcmaArray(vec![("k".into(), Value::Null)]),
            Value::StrictArray(vec![Value::Undefined, Value::Number(1.0)]),
            Value::Null,
        ];
        let mut bytes = Vec::new();
        values.iter().for_each(|value| value.encode(&mut bytes));
        assert_eq!(decode(&bytes), values);
    }

    #[test]
    fn what_follows_an_unreadable_value_is_left_out() {
        let mut bytes = bytes_of(&"onStatus".into());
        bytes.extend([0x11, 0x01]);
        assert_eq!(decode(&bytes), [Value::from("onStatus")]);
    }

    #[test]
    fn nesting_and_number_of_values_are_bounded() {
        assert!(decode(&b"\x03\0\x01a".repeat(100_000)).is_empty());
        assert!(decode(&b"\x0a\0\0\0\x01".repeat(100_000)).is_empty());
        assert_eq!(decode(&vec![marker::NULL; 100_000]).len(), MAX_VALUES);
        assert!(decode(b"\x0a\xff\xff\xff\xff\x05").is_empty());
    }

    #[test]
    fn garbage_never_panics() {
        let mut noise = Noise(1);
        for _ in 0..50_000 {
            let bytes: Vec<u8> = (0..noise.below(64))
                .map(|_| (noise.next() % 24) as u8)
                .collect();
            decode(&bytes);
        }
    }
}

//! The WebSocket protocol `wrenn.exec.v1`: messages and frames.
//!
//! Text frames hold JSON and control the command. Binary frames hold its input and output:
//!
//! ```text
//! server ─▶ client   channel (1 byte) │ offset (8 bytes, big-endian) │ up to 32 KiB
//! client ─▶ server   0       (1 byte) │ input
//! ```
//!
//! The client's first message is `auth` where the request had no credential, then `start` or
//! `connect`. The server answers `started`, sends output, and ends with exactly one `exit` or
//! `error`, after which it closes the socket. With `?format=json` both sides use
//! [`ServerMessage::Output`] and [`ClientMessage::Input`] instead of binary frames.

use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::string_enum::string_enum;

/// The name of the protocol, as `Sec-WebSocket-Protocol` has it.
pub const PROTOCOL: &str = "wrenn.exec.v1";
/// The most output bytes of one frame.
pub const MAX_CHUNK: usize = 32 << 10;
/// The most input bytes of one frame, and of any message to the server.
pub const MAX_CLIENT_FRAME: usize = 1 << 20;

string_enum! {
    /// Where output came from.
    Channel, "channel" {
        /// Standard output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
        /// The terminal.
        Tty = "tty",
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The command to start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Start {
    /// The program.
    pub cmd: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables on top of the sandbox's.
    pub env: BTreeMap<String, String>,
    /// Directory that it starts in; the user's home unless set.
    pub cwd: String,
    /// User of the guest; the template's default one unless set.
    pub user: String,
    /// The size of its terminal, if it gets one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
    /// Whether input will come. Without, it reads end of file at once.
    pub stdin: bool,
    /// A name to find it by.
    pub tag: String,
    /// Seconds after which it is killed; 0 for never.
    pub timeout_sec: u64,
}

/// How many bytes of each channel the client has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Offsets {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
    /// Of the terminal.
    pub tty: u64,
}

impl Offsets {
    /// The offset of a channel.
    #[must_use]
    pub fn get(&self, channel: Channel) -> u64 {
        match channel {
            Channel::Stderr => self.stderr,
            Channel::Tty => self.tty,
            Channel::Stdout | Channel::Unknown => self.stdout,
        }
    }

    /// Sets the offset of a channel.
    pub fn set(&mut self, channel: Channel, offset: u64) {
        match channel {
            Channel::Stderr => self.stderr = offset,
            Channel::Tty => self.tty = offset,
            Channel::Stdout | Channel::Unknown => self.stdout = offset,
        }
    }
}

/// Which command to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Connect {
    /// Its process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Or its tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Output that the client has already; absent: only output that no client was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Offsets>,
}

/// A message of the client, in a text frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ClientMessage {
    /// A credential: an API key, or a token.
    Auth {
        /// The credential.
        token: String,
    },
    /// Start a command.
    Start(Start),
    /// Follow a command that runs.
    Connect(Connect),
    /// Input, with `?format=json`.
    Input {
        /// The bytes in base64.
        data: String,
    },
    /// No more input: the command reads end of file.
    Eof,
    /// The terminal has another size.
    Resize(TerminalSize),
    /// Send a signal to the command's process group.
    Signal {
        /// Its number.
        signal: u32,
    },
    /// Kill the command.
    Stop,
}

/// A message of the server, in a text frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ServerMessage {
    /// The command runs.
    Started {
        /// Its process id.
        pid: u32,
        /// Its tag; empty for none.
        tag: String,
        /// Whether it has a terminal.
        #[serde(default)]
        tty: bool,
    },
    /// Output, with `?format=json`.
    Output {
        /// Where it came from.
        channel: Channel,
        /// Where its first byte stands in the channel.
        offset: u64,
        /// The bytes in base64.
        data: String,
    },
    /// The command has ended.
    Exit(Exit),
    /// The stream is over, and the command's end is not known.
    Error {
        /// The kind.
        code: ErrorCode,
        /// A sentence that says what to do.
        message: String,
    },
    /// A message of a newer server.
    #[serde(other)]
    Unknown,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exit {
    /// The exit code, or 128 and the signal's number. 127: the command was not found; 126:
    /// it is no program.
    pub code: i32,
    /// The number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u32>,
    /// Whether its time-out killed it.
    #[serde(default)]
    pub timed_out: bool,
    /// A sentence where the code does not tell: the command was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it came from.
    pub channel: Channel,
    /// Where its first byte stands in the channel.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

const OUTPUT_HEADER: usize = 9;

/// Why a binary frame cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is shorter than its header.
    #[error("a frame of {0} bytes is too short")]
    Short(usize),
    /// Its channel does not exist.
    #[error("there is no channel {0}")]
    Channel(u8),
}

impl Output {
    /// The binary frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut frame = BytesMut::with_capacity(OUTPUT_HEADER + self.data.len());
        frame.put_u8(match self.channel {
            Channel::Stdout | Channel::Unknown => 1,
            Channel::Stderr => 2,
            Channel::Tty => 3,
        });
        frame.put_u64(self.offset);
        frame.put_slice(&self.data);
        frame.freeze()
    }

    /// Reads a binary frame of the server.
    ///
    /// # Errors
    /// When it is too short or names no channel.
    pub fn decode(frame: &Bytes) -> Result<Self, FrameError> {
        let Some((header, _)) = frame.split_first_chunk::<OUTPUT_HEADER>() else {
            return Err(FrameError::Short(frame.len()));
        };
        let [channel, offset @ ..] = *header;
        Ok(Self {
            channel: match channel {
                1 => Channel::Stdout,
                2 => Channel::Stderr,
                3 => Channel::Tty,
                other => return Err(FrameError::Channel(other)),
            },
            offset: u64::from_be_bytes(offset),
            data: frame.slice(OUTPUT_HEADER..),
        })
    }
}

/// The binary frame of input.
#[must_use]
pub fn encode_input(data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + data.len());
    frame.put_u8(0);
    frame.put_slice(data);
    frame.freeze()
}

/// Reads a binary frame of the client.
///
/// # Errors
/// When it is empty or names another channel than 0.
pub fn decode_input(frame: &Bytes) -> Result<Bytes, FrameError> {
    match frame.first() {
        Some(0) => Ok(frame.slice(1..)),
        Some(other) => Err(FrameError::Channel(*other)),
        None => Err(FrameError::Short(0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_match_documented_json() {
        let cases = [
            (
                serde_json::to_string(&ServerMessage::Exit(Exit::default())).unwrap(),
                r#"{"type":"exit","code":0,"timed_out":false}"#,
            ),
            (
                serde_json::to_string(&ClientMessage::Eof).unwrap(),
                r#"{"type":"eof"}"#,
            ),
            (
                serde_json::to_string(&ClientMessage::Resize(TerminalSize { cols: 80, rows: 24 }))
                    .unwrap(),
                r#"{"type":"resize","cols":80,"rows":24}"#,
            ),
        ];
        for (got, wanted) in cases {
            assert_eq!(got, wanted);
        }
        let unknown: ServerMessage = serde_json::from_str(r#"{"type":"later","x":1}"#).unwrap();
        assert_eq!(unknown, ServerMessage::Unknown);
        let started: ClientMessage =
            serde_json::from_str(r#"{"type":"start","cmd":"ls","args":["-l"]}"#).unwrap();
        assert!(matches!(started, ClientMessage::Start(start) if start.cmd == "ls"));
        assert!(serde_json::from_str::<ClientMessage>(r#"{"type":"start","cmdd":"ls"}"#).is_err());
    }

    #[test]
    fn malformed_frames_are_refused() {
        assert_eq!(
            Output::decode(&Bytes::from_static(b"\x01short")),
            Err(FrameError::Short(6))
        );
        assert_eq!(
            Output::decode(&Bytes::from_static(b"\x07\0\0\0\0\0\0\0\0")),
            Err(FrameError::Channel(7))
        );
        assert_eq!(decode_input(&Bytes::new()), Err(FrameError::Short(0)));
    }

    proptest! {
        #[test]
        fn output_frames_round_trip(offset: u64, data: Vec<u8>, channel in 0..3usize) {
            let output = Output {
                channel: Channel::ALL[channel],
                offset,
                data: data.into(),
            };
            prop_assert_eq!(Output::decode(&output.encode()).unwrap(), output);
        }

        #[test]
        fn input_frames_round_trip(data: Vec<u8>) {
            prop_assert_eq!(decode_input(&encode_input(&data)).unwrap(), data);
        }
    }
}

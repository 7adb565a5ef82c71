//! A system bus with nobody on it but a service manager that has no units.
//!
//! It speaks D-Bus over a socket of its own (`DBUS_SYSTEM_BUS_ADDRESS`) and answers the few calls
//! that an agent makes before its first VM.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use zbus::message::Type;
use zbus::{Connection, Guid, Message};

/// One row of `ListUnitsByPatterns`.
type Unit = (
    String,
    String,
    String,
    String,
    String,
    String,
    zbus::OwnedObjectPath,
    u32,
    String,
    zbus::OwnedObjectPath,
);

/// Serve at `path` until the test process ends. It listens when this returns.
pub(crate) fn serve(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(answer(stream));
            });
        }
    });
}

async fn answer(stream: UnixStream) {
    let guid = Guid::generate();
    let connection = zbus::connection::Builder::unix_stream(stream)
        .server(guid)
        .p2p()
        .build()
        .await
        .unwrap();
    let mut messages = zbus::MessageStream::from(&connection);
    while let Some(Ok(message)) = next(&mut messages).await {
        if message.message_type() == Type::MethodCall {
            reply(&connection, &message).await;
        }
    }
}

async fn next(messages: &mut zbus::MessageStream) -> Option<zbus::Result<Message>> {
    use futures_core::Stream as _;
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *messages).poll_next(cx)).await
}

async fn reply(connection: &Connection, call: &Message) {
    let header = call.header();
    let member = header.member().unwrap().to_string();
    let sent = match member.as_str() {
        "Hello" => connection.reply(&header, &":1.1").await,
        "AddMatch" | "RemoveMatch" | "Subscribe" => connection.reply(&header, &()).await,
        "ListUnitsByPatterns" => connection.reply(&header, &Vec::<Unit>::new()).await,
        "GetUnit" => {
            let error = "org.freedesktop.systemd1.NoSuchUnit";
            connection.reply_error(&header, error, &"none").await
        }
        other => panic!("the agent calls {other}"),
    };
    // The agent may be gone: the tests kill it.
    drop(sent);
}

//! What the programs do when the other side is no controller, or a bad one.
//!
//! A stub plays one canned reply for each connection and hands back what it was asked. Everything
//! that needs a controller is tested against the real one, in the package berth-tests.

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::process::{Command, Output};
    use std::sync::mpsc::{Receiver, channel};

    const TOKEN: &str = "v4.public.not-to-be-shown";

    fn berthctl(url: &str, arguments: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_berthctl"))
            .args(arguments)
            .env_clear()
            .env("BERTH_URL", url)
            .env("BERTH_TOKEN", TOKEN)
            .env("http_proxy", "http://127.0.0.1:9")
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .env("ALL_PROXY", "http://127.0.0.1:9")
            .output()
            .unwrap();
        for shown in [&output.stdout, &output.stderr] {
            let shown = String::from_utf8_lossy(shown);
            assert!(!shown.contains("not-to-be-shown"), "{shown}");
        }
        output
    }

    /// Serve the replies, one for each connection; the requests' heads come out of the receiver.
    fn stub(replies: Vec<String>) -> (String, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for reply in replies {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                    request.push(byte[0]);
                }
                stream.write_all(reply.as_bytes()).unwrap();
                sender.send(String::from_utf8(request).unwrap()).ok();
            }
        });
        (url, receiver)
    }

    fn http(status: &str, headers: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
            body.len()
        )
    }

    #[track_caller]
    fn check(output: &Output, code: i32, stderr: &str) {
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(shown.contains(stderr), "{shown}");
    }

    #[test]
    fn nobody_listening_says_where_it_tried_and_what_to_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let output = berthctl(&url, &["vm", "list"]);
        check(&output, 1, &format!("no controller answers at {url}"));
        check(&output, 1, "systemctl start berth-controller.socket");
        let output = berthctl(&url, &["--json", "vm", "list"]);
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["code"], "not_reachable");
    }

    #[test]
    fn a_connection_cut_in_the_middle_is_an_error() {
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"items\":".to_owned();
        let (url, _requests) = stub(vec![cut, String::new()]);
        check(&berthctl(&url, &["vm", "list"]), 1, "the request to");
        check(&berthctl(&url, &["vm", "list"]), 1, "the request to");
    }

    #[test]
    fn something_else_than_http_is_an_error() {
        let (url, _requests) = stub(vec!["SSH-2.0-OpenSSH_9.2\r\n".to_owned()]);
        check(&berthctl(&url, &["me"]), 1, "the request to");
    }

    #[test]
    fn something_else_than_the_promised_reply_is_an_error() {
        let html = http("200 OK", "", "<html>");
        let other = http("200 OK", "", r#"{"hello":"world"}"#);
        let (url, _requests) = stub(vec![html, other]);
        let expected = "reply to GET /v1/me is not understood";
        check(&berthctl(&url, &["me"]), 1, expected);
        check(&berthctl(&url, &["me"]), 1, expected);
    }

    #[test]
    fn a_redirect_is_not_followed_and_the_token_stays_here() {
        let (elsewhere, reached) = stub(vec![http("200 OK", "", "{}")]);
        let away = http(
            "307 Temporary Redirect",
            &format!("location: {elsewhere}/\r\n"),
            "",
        );
        let (url, requests) = stub(vec![away]);
        check(&berthctl(&url, &["me"]), 1, "answered with HTTP 307");
        let request = requests.recv().unwrap();
        assert!(
            request.contains(&format!("authorization: Bearer {TOKEN}")),
            "{request}"
        );
        reached.try_recv().unwrap_err();
    }

    #[test]
    fn an_error_body_is_shown_in_words_or_as_it_came() {
        let body = r#"{"type":"t","title":"Not found","status":404,"code":"not_found","error":"No VM web-9","detail":"See vm list.","retryable":false,"request_id":"req_1","extra":1}"#;
        let reply = http("404 Not Found", "", body);
        let (url, requests) = stub(vec![reply.clone(), reply]);
        let output = berthctl(&url, &["vm", "show", "web-9"]);
        check(
            &output,
            3,
            "error: No VM web-9\n  See vm list.\n  code: not_found   request: req_1\n",
        );
        let output = berthctl(&url, &["vm", "show", "../x", "--json"]);
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["extra"], 1);
        assert!(requests.recv().unwrap().starts_with("GET /v1/vms/web-9 "));
        assert!(requests.recv().unwrap().starts_with("GET /v1/vms/..%2Fx "));
    }

    #[test]
    fn an_error_without_a_body_is_judged_by_its_status() {
        let (url, _requests) = stub(vec![http("403 Forbidden", "", "no")]);
        check(
            &berthctl(&url, &["me"]),
            4,
            "GET /v1/me was answered with HTTP 403",
        );
    }
}

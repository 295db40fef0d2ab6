// The server of goprog/web, in JavaScript.
'use strict';
const { spawn } = require('child_process');
const http = require('http');
const path = require('path');

const [, , dir, port] = process.argv;
const sums = new Map();
const child = spawn('/bin/cat', { stdio: ['pipe', 'pipe', 'inherit'] });
const waiting = []; // who waits for a line of the child
let rest = '';
child.stdout.on('data', (d) => {
	const lines = (rest + d).split('\n');
	rest = lines.pop();
	for (const l of lines) waiting.shift().end(l + '\n');
});

function serve(req, res) {
	const url = new URL(req.url, 'http://localhost');
	const body = [];
	req.on('data', (d) => body.push(d));
	req.on('end', () => {
		switch (url.pathname) {
		case '/add': {
			const key = url.searchParams.get('key');
			sums.set(key, (sums.get(key) || 0) + Number(url.searchParams.get('n')));
			return res.end(sums.get(key) + '\n');
		}
		case '/echo':
			res.setHeader('Content-Length', Buffer.concat(body).length);
			return res.end(Buffer.concat(body));
		case '/cat':
			waiting.push(res);
			return child.stdin.write(Buffer.concat(body));
		case '/ticks': {
			let n = 0;
			const t = setInterval(() => res.write(n++ + '\n'), 5);
			return res.on('close', () => clearInterval(t));
		}
		}
		res.statusCode = 404;
		res.end();
	});
}

const forever = { keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0 };
const servers = [http.createServer(forever, serve), http.createServer(forever, serve)];
servers[0].listen(Number(port), '127.0.0.1');
servers[1].listen(path.join(dir, 'sock'));
process.on('SIGTERM', () => {
	for (const s of servers) {
		s.close();
		s.closeAllConnections();
	}
	child.on('exit', (status) => process.exit(status));
	child.stdin.end();
});

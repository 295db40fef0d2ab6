// Timers of known number and order, a chain of promises, a pool's digests, streams of files through zlib, worker threads on shared memory, a heap that
// the collector works on, each with a result known beforehand.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const { pipeline } = require('stream/promises');
const { setTimeout: sleep } = require('timers/promises');
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');
const zlib = require('zlib');

function sum(n) { // hot: compiled
	let s = 0;
	for (let i = 0; i < n; i++) s = (s * 31 + i) % 1000003;
	return s;
}

if (!isMainThread) {
	const shared = new Int32Array(workerData.shared);
	for (let i = 0; i < 200; i++) {
		Atomics.add(shared, 0, 1);
		Atomics.wait(shared, 1, 0, 5); // nobody wakes it: a timeout each
		if (sum(20000) !== workerData.want) parentPort.postMessage('a sum is wrong in round ' + i);
	}
	parentPort.postMessage(null);
} else {
	main();
}

async function main() {
	const dir = process.argv[2], errors = [];
	process.chdir(dir);
	const check = (what, got, want) => { if (got !== want) errors.push(`${what}: ${got}, want ${want}`); };
	const uncaught = (e) => { errors.push(`${e.stack}`); finish(); };
	process.on('uncaughtException', uncaught);
	process.on('unhandledRejection', uncaught);
	function finish() {
		fs.appendFileSync('report', errors.map((e) => e + '\n').join(''));
		fs.writeFileSync('done.new', errors.length ? 'bad\n' : 'ok\n');
		fs.renameSync('done.new', 'done');
		process.exit(errors.length ? 1 : 0);
	}

	async function timers() { // each longer than the one before: they must fire in that order
		let fired = [], last = 0n;
		await Promise.all(Array.from({ length: 150 }, (_, i) => new Promise((done) => setTimeout(() => { fired.push(i); done(); }, 5 + 10 * i))));
		check('timers in order', fired.join(), Array.from({ length: 150 }, (_, i) => i).join());
		let ticks = 0;
		await new Promise((done) => {
			const t = setInterval(() => {
				const now = process.hrtime.bigint();
				if (now < last) errors.push('the clock went back');
				last = now;
				if (++ticks === 100) { clearInterval(t); done(); }
			}, 3);
		});
		check('ticks', ticks, 100);
	}

	async function pool() {
		for (let i = 0; i < 40; i++) {
			const keys = await Promise.all(['a', 'b', 'c', 'd', 'e'].map((p) => new Promise((done, fail) =>
				crypto.pbkdf2(p + i, 'salt', 300, 32, 'sha256', (e, k) => e ? fail(e) : done(k.toString('hex'))))));
			keys.forEach((k, n) => check('a key', k, crypto.pbkdf2Sync('abcde'[n] + i, 'salt', 300, 32, 'sha256').toString('hex')));
			await sleep(10);
		}
	}

	async function files() {
		const text = Buffer.from(Array.from({ length: 40000 }, (_, i) => `line ${i * i}\n`).join(''));
		fs.writeFileSync('text', text);
		for (let i = 0; i < 8; i++) {
			await pipeline(fs.createReadStream('text'), zlib.createGzip(), fs.createWriteStream('text.gz'));
			await pipeline(fs.createReadStream('text.gz'), zlib.createGunzip(), fs.createWriteStream('back'));
			check('the text', text.equals(await fs.promises.readFile('back')), true);
			await sleep(50);
		}
	}

	async function workers() {
		const shared = new SharedArrayBuffer(8), want = sum(20000);
		await Promise.all(Array.from({ length: 2 }, () => new Promise((done) => {
			const w = new Worker(__filename, { workerData: { shared, want } });
			w.on('message', (m) => { if (m) errors.push(m); });
			w.on('error', uncaught);
			w.on('exit', done);
		})));
		check('additions of the workers', new Int32Array(shared)[0], 400);
	}

	async function heap() {
		const live = new Map();
		for (let i = 0; i < 60; i++) {
			for (let k = 0; k < 1500; k++) live.set(i * 1500 + k, { v: 'v' + (i * 1500 + k), junk: new Array(30).fill(k) });
			for (let k = 0; k < 1500; k += 2) live.delete(i * 1500 + k);
			await sleep(15);
		}
		let wrong = 0;
		for (const [k, o] of live) if (o.v !== 'v' + k || o.junk.length !== 30 || o.junk[29] !== k % 1500) wrong++;
		check('objects', live.size, 60 * 750);
		check('wrong objects', wrong, 0);
	}

	await Promise.all([timers(), pool(), files(), workers(), heap()]);
	finish();
}

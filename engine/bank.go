package engine

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/memory"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// fillBank gives the stub the pages that processes share, which are the first of the contents, and returns the record behind them.
func (rs *restoration) fillBank(reader *stream.Reader, rec *stream.Record) (_ *stream.Record, err error) {
	b := rs.arena.NewBatch()
	if err := rs.bank.Layout(rs.r, b, [2]arch.Addr{rs.base, rs.base + arch.Addr(rs.arena.Size())}); err != nil {
		return nil, err
	}
	if err := rs.tracer.RunOne(rs.stub, b); err != nil {
		return nil, fmt.Errorf("making room for shared pages: %w", err)
	}
	filler := memory.NewFiller(rs.r, rs.spaces)
	defer func() { err = errors.Join(err, filler.Wait()) }()
	filler.MapBank(rs.bank, rs.stub.Tid)
	reader.SetBuffers(filler.Buffer)
	for rec != nil && rec.Type == object.TypePages {
		var meta memory.Pages
		if err := rec.Decode(&meta); err != nil {
			return nil, object.BadImagef("%w", err)
		}
		if meta.Of != rs.bank.Ref {
			break
		}
		if err := filler.Put(rec); err != nil {
			return nil, err
		}
		if rec, err = reader.Next(); errors.Is(err, io.EOF) {
			rec, err = nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return rec, nil
}

// prune has a process drop what it has inherited of the bank for others than itself and those that it will make. It is called before it makes
// any.
func (rs *restoration) prune(b *tracee.Batch, x *tasks.Birth) {
	if rs.bank == nil || rs.switches(x) {
		return
	}
	if rs.needs == nil {
		rs.needs = map[*tasks.Birth]memory.Needs{}
		for i := len(rs.forest.All) - 1; i >= 0; i-- { // creators come before what they create
			y := rs.forest.All[i]
			var own *memory.Space
			if p := rs.byPID[y.PID]; !y.Ghost() && p != nil {
				own = p.space
			}
			rs.needs[y] = rs.bank.Needs(rs.needs[y], own)
			if y.Creator != nil {
				rs.needs[y.Creator] = rs.bank.Needs(rs.needs[y.Creator], nil)
				rs.needs[y.Creator].Add(rs.needs[y])
			}
		}
	}
	if x.Share&unix.CLONE_VM != 0 {
		return // it is its creator's
	}
	maker := x.Creator
	for maker != nil && maker.Share&unix.CLONE_VM != 0 {
		maker = maker.Creator
	}
	had := rs.needs[maker]
	if maker == nil {
		had = rs.bank.Everything()
	}
	rs.bank.Prune(b, had, rs.needs[x])
}

// closeBank copies what could not be inherited, and lets the stub end.
func (rs *restoration) closeBank(filler *memory.Filler) error {
	if rs.bank == nil {
		return nil
	}
	if err := filler.Copy(rs.bank, rs.stub.Tid); err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	b.Call(b.Sys().ExitGroup, 0)
	return rs.tracer.RunOne(rs.stub, b)
}

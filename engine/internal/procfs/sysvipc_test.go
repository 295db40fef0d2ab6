package procfs

import "testing"

func TestSysVIPC(t *testing.T) {
	shm, err := ParseSysVShm([]byte("       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n" +
		"-559038737      32770  3600                  8192    11    12     2  1000   100     0     0 1700000001          0 1700000000                  4096                     0\n"))
	want := SysVShm{IPCPerm: IPCPerm{Key: -559038737, ID: 32770, Mode: 0o600 | IPCDest | IPCLocked, UID: 1000, GID: 100}, Size: 8192, CPID: 11, LPID: 12, NAttch: 2, ATime: 1700000001, CTime: 1700000000}
	if err != nil || len(shm) != 1 || shm[0] != want {
		t.Errorf("shm: %+v, %v", shm, err)
	}
	sem, err := ParseSysVSem([]byte("key\n 7 0 600 250 0 0 1 2 0 5\n 0 1 666 1 0 0 0 0 9 5\n"))
	if err != nil || len(sem) != 2 || sem[0] != (SysVSem{IPCPerm: IPCPerm{Key: 7, Mode: 0o600, CUID: 1, CGID: 2}, Count: 250, CTime: 5}) || sem[1].OTime != 9 {
		t.Errorf("sem: %+v, %v", sem, err)
	}
	msg, err := ParseSysVMsg([]byte("key\n 0 3 644 100 2 8 9 0 0 0 0 1 2 3\n"))
	if err != nil || len(msg) != 1 || msg[0] != (SysVMsg{IPCPerm: IPCPerm{ID: 3, Mode: 0o644}, Bytes: 100, Count: 2, LSPID: 8, LRPID: 9, STime: 1, RTime: 2, CTime: 3}) {
		t.Errorf("msg: %+v, %v", msg, err)
	}
	for _, bad := range []string{"key\n1\n", "key\n 7 0 600 x 0 0 1 2 0 5\n", "key\n 7 0 900 1 0 0 1 2 0 5\n"} {
		if _, err := ParseSysVSem([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

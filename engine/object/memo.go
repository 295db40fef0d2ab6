package object

// Memo returns what make returned the first time that it was asked for with this key: what a family wants to look at once for the
// whole tree. Keys are comparable values of a type private to the family. An error is not remembered.
func Memo[T any](d *Dumper, key any, make func() (T, error)) (T, error) {
	if v, ok := d.memos[key]; ok {
		return v.(T), nil
	}
	v, err := make()
	if err != nil {
		return v, err
	}
	if d.memos == nil {
		d.memos = map[any]any{}
	}
	d.memos[key] = v
	return v, nil
}

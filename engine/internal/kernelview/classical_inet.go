package kernelview

// Inet, Datagrams, Netlink and PacketSocket are documented with View. No call tells any of it.

func (v *classicalView) Inet(id ID) (Inet, error)            { return Inet{}, v.noSocket(id) }
func (v *classicalView) Datagrams(id ID) ([]Datagram, error) { return nil, v.noSocket(id) }
func (v *classicalView) Netlink(id ID) (Netlink, error)      { return Netlink{}, v.noSocket(id) }
func (v *classicalView) PacketSocket(id ID) (PacketSocket, error) {
	return PacketSocket{}, v.noSocket(id)
}

func (v *classicalView) noSocket(id ID) error {
	if _, err := v.held(id, KindSocket); err != nil {
		return err
	}
	return missingSockets
}

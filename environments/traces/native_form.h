// An owned reference, and marshal's form 2 of plain values.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

// An owned reference, or none.
class Ref {
public:
    Ref() = default;
    explicit Ref(PyObject* owned) : object_(owned) {}
    Ref(Ref&& other) noexcept : object_(other.release()) {}
    Ref& operator=(Ref&& other) noexcept {
        PyObject* old = object_;
        object_ = other.release();
        Py_XDECREF(old);
        return *this;
    }
    ~Ref() { Py_XDECREF(object_); }
    static Ref to(PyObject* borrowed) { return Ref(Py_XNewRef(borrowed)); }
    PyObject* get() const { return object_; }
    PyObject* release() {
        PyObject* object = object_;
        object_ = nullptr;
        return object;
    }
    explicit operator bool() const { return object_ != nullptr; }

private:
    PyObject* object_ = nullptr;
};

constexpr int MAX_DEPTH = 100;

// Characters of a string, which C code may have left in an old form; -1 when there is no memory to change that.
Py_ssize_t length_of(PyObject* text) {
    if (PyUnicode_READY(text) == 0) return PyUnicode_GET_LENGTH(text);
    PyErr_Clear();
    return -1;
}

// Writes a container into a buffer as `marshal.dumps(value, 2)` does: false for what is not plain, or too large or deep, which Python then
// looks at. Runs no Python code and makes no object that the garbage collector knows, so nothing changes meanwhile.
class Form {
public:
    Form(unsigned char* buffer, Py_ssize_t size, Py_ssize_t max_parts)
        : start_(buffer), at_(buffer), end_(buffer + size), left_(max_parts + 1) {}
    bool write(PyObject* container) { return value(container, MAX_DEPTH); }
    Py_ssize_t size() const { return at_ - start_; }
    bool is_large() const { return is_large_; }  // whether that is why it failed

private:
    bool large() {
        is_large_ = true;
        return false;
    }

    bool value(PyObject* object, int depth) {
        if (left_-- == 0) return large();
        PyTypeObject* type = Py_TYPE(object);
        if (type == &PyLong_Type) return integer(object);
        if (type == &PyUnicode_Type) return text(object);
        if (object == Py_None) return code('N');
        if (type == &PyBool_Type) return code(object == Py_True ? 'T' : 'F');
        if (type == &PyFloat_Type) return code('g') && real(PyFloat_AS_DOUBLE(object));
        if (type == &PyBytes_Type) return sized('s', PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object));
        if (type == &PyComplex_Type) return code('y') && real(PyComplex_RealAsDouble(object)) && real(PyComplex_ImagAsDouble(object));
        if (depth == 0) return large();
        if (type == &PyList_Type || type == &PyTuple_Type) {
            const bool is_list = type == &PyList_Type;
            const Py_ssize_t size = Py_SIZE(object);
            if (size > left_) return large();
            if (!code(is_list ? '[' : '(') || !number(static_cast<unsigned long>(size), 4)) return false;
            for (Py_ssize_t k = 0; k < size; k++) {
                if (!value(is_list ? PyList_GET_ITEM(object, k) : PyTuple_GET_ITEM(object, k), depth - 1)) return false;
            }
            return true;
        }
        if (type != &PyDict_Type || !code('{')) return false;
        Py_ssize_t place = 0;
        PyObject *key, *item;
        while (PyDict_Next(object, &place, &key, &item)) {
            if (!value(key, depth - 1) || !value(item, depth - 1)) return false;
        }
        return code('0');
    }

    bool bytes(const void* data, Py_ssize_t size) {
        if (end_ - at_ < size) return large();
        std::memcpy(at_, data, static_cast<std::size_t>(size));
        at_ += size;
        return true;
    }

    bool code(char letter) { return bytes(&letter, 1); }

    bool number(unsigned long number, int size) {
        unsigned char little[4];
        for (int k = 0; k < size; k++) little[k] = static_cast<unsigned char>(number >> 8 * k);
        return bytes(little, size);
    }

    bool real(double number) {
        char little[8];
        return PyFloat_Pack8(number, little, 1) == 0 && bytes(little, 8);
    }

    bool sized(char letter, const void* data, Py_ssize_t size) {
        if (end_ - at_ < size) return large();
        return code(letter) && number(static_cast<unsigned long>(size), 4) && bytes(data, size);
    }

    bool integer(PyObject* object) {
        int overflow;
        const long long number_ = PyLong_AsLongLongAndOverflow(object, &overflow);
        if (overflow != 0) return false;
        if (number_ >= INT32_MIN && number_ <= INT32_MAX) return code('i') && number(static_cast<unsigned long>(number_), 4);
        const bool negative = number_ < 0;
        unsigned long long left = negative ? 0ULL - static_cast<unsigned long long>(number_) : static_cast<unsigned long long>(number_);
        int digits = 0;
        for (unsigned long long rest = left; rest != 0; rest >>= 15) digits++;
        if (!code('l') || !number(static_cast<unsigned long>(negative ? -digits : digits), 4)) return false;
        for (; left != 0; left >>= 15) {
            if (!number(left & 0x7fff, 2)) return false;
        }
        return true;
    }

    bool text(PyObject* object) {
        const Py_ssize_t length = length_of(object);
        if (length < 0) return false;
        if (end_ - at_ < length) return large();
        if (PyUnicode_IS_ASCII(object)) return sized('u', PyUnicode_DATA(object), length);
        Ref utf8(PyUnicode_AsUTF8String(object));
        if (!utf8) return PyErr_Clear(), false;  // a surrogate, or no memory
        return sized('u', PyBytes_AS_STRING(utf8.get()), PyBytes_GET_SIZE(utf8.get()));
    }

    unsigned char *start_, *at_, *end_;
    Py_ssize_t left_;  // parts that may still come
    bool is_large_ = false;
};

}  // namespace
